// A graphics card that is none: tensors on `cuda:0` in a PyTorch that was built without CUDA.
//
// Their memory is the host's and their kernels are the processor's; everything around is as with a card: the
// device, dispatch and autograd, autocast, generators, streams. What a card may do later is done as late as it
// may be: until the copy is waited for, its target is not a number. Every wait of the host is told to a
// listener. `card.py` puts it in and stands in for the part of `torch.cuda` that is written in Python.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>

namespace {

using at::Tensor;
using c10::DispatchKey;
using c10::DispatchKeySet;
using Number = int64_t;

const c10::Device CARD(c10::DeviceType::CUDA, 0);
constexpr int UNKNOWN = 0xFF;  // every byte of memory that holds no numbers yet: not a number in any format
constexpr Number EVERYTHING = std::numeric_limits<Number>::max();

// ------------------------------------------------------------------------------------------------ waits

py::object* listener = nullptr;
thread_local Number current_stream = 0;

void tell(const std::string& what) {
  if (!listener) return;
  py::gil_scoped_acquire gil;
  (*listener)(what);
}

// ----------------------------------------------------------------------------------------------- memory

std::mutex memory_lock;
std::map<const char*, size_t> pinned;  // start and length of what is page-locked
std::atomic<Number> live{0}, peak{0};

bool is_pinned(const void* place) {
  std::lock_guard<std::mutex> guard(memory_lock);
  auto after = pinned.upper_bound(static_cast<const char*>(place));
  if (after == pinned.begin()) return false;
  --after;
  return static_cast<const char*>(place) < after->first + std::max<size_t>(after->second, 1);
}

void note_pinned(const void* place, size_t size) {
  std::lock_guard<std::mutex> guard(memory_lock);
  pinned[static_cast<const char*>(place)] = size;
}

void forget_pinned(const void* place) {
  std::lock_guard<std::mutex> guard(memory_lock);
  pinned.erase(static_cast<const char*>(place));
}

// The memory of a processor's storage as the card's, counted for as long as it is held.
c10::DataPtr as_card_memory(c10::Storage storage) {
  struct Held {
    c10::Storage storage;
    Number size;
  };
  auto* held = new Held{storage, static_cast<Number>(storage.nbytes())};
  Number now = live += held->size, before = peak;
  while (now > before && !peak.compare_exchange_weak(before, now)) {}
  auto release = [](void* context) {
    auto* held = static_cast<Held*>(context);
    live -= held->size;
    delete held;
  };
  return {const_cast<void*>(storage.data()), held, release, CARD};
}

struct CardAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    auto data = c10::GetCPUAllocator()->allocate(size);
    if (size) std::memset(data.get(), UNKNOWN, size);
    return as_card_memory(
        c10::Storage(c10::Storage::use_byte_size_t(), size, std::move(data), c10::GetCPUAllocator(), false));
  }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
} card_memory;

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    void* place = c10::alloc_cpu(std::max<size_t>(size, 1));
    note_pinned(place, size);
    auto release = [](void* place) {
      forget_pinned(place);
      c10::free_cpu(place);
    };
    return {place, place, release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
} pinned_memory;

// ---------------------------------------------------------------------- the card, as PyTorch asks for it

struct CardGenerator final : c10::GeneratorImpl {
  at::Generator inner = at::detail::createCPUGenerator(c10::default_rng_seed_val);
  CardGenerator() : GeneratorImpl(CARD, DispatchKeySet(DispatchKey::CUDA)) {}
  void set_current_seed(uint64_t seed) override { inner.set_current_seed(seed); }
  void set_offset(uint64_t) override {}
  uint64_t get_offset() const override { return 0; }
  uint64_t current_seed() const override { return inner.current_seed(); }
  uint64_t seed() override { return inner.seed(); }
  void set_state(const c10::TensorImpl& state) override { inner.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return inner.unsafeGetGeneratorImpl()->get_state();
  }
  GeneratorImpl* clone_impl() const override {
    auto* copy = new CardGenerator();
    copy->inner = inner.clone();
    return copy;
  }
};

at::Generator& default_generator() {
  static at::Generator generator = at::make_generator<CardGenerator>();
  return generator;
}

struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override { return default_generator(); }
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::make_generator<CardGenerator>(); }
  c10::Device getDeviceFromPtr(void*) const override { return CARD; }
  bool isPinnedPtr(const void* place) const override { return is_pinned(place); }
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_memory; }
  c10::Allocator* getCUDADeviceAllocator() const override { return &card_memory; }
  int getNumGPUs() const override { return 1; }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream stream(Number id) { return c10::Stream(c10::Stream::UNSAFE, CARD, id); }
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return CARD; }
  c10::Device getDevice() const override { return CARD; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream(current_stream); }
  c10::Stream getDefaultStream(c10::Device) const override { return stream(0); }
  c10::Stream exchangeStream(c10::Stream next) const override {
    return stream(std::exchange(current_stream, next.id()));
  }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void** event, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {
    *event = this->marker();
  }
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(c10::DeviceIndex) const override {}
  static void* marker() {
    static char place;
    return &place;
  }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

// ---------------------------------------------- the same tensors as the processor sees them, and back again

class Views {
 public:
  Tensor processor(const Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cuda()) return tensor;
    for (auto& [card, own] : tensors_)
      if (card.is_same(tensor)) return own;
    Tensor own = made(tensor, processor_storage(tensor.storage()), DispatchKey::CPU, c10::BackendComponent::CPUBit,
                      /*is_view=*/true, tensor.is_inference());
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) own.unsafeGetTensorImpl()->set_wrapped_number(true);
    tensors_.emplace_back(tensor, own);
    return own;
  }

  Tensor card(const Tensor& tensor) {
    if (!tensor.defined() || tensor.is_cuda()) return tensor;
    for (auto& [card, own] : tensors_)
      if (own.is_same(tensor)) return card;
    for (auto& [card, own] : storages_)
      if (same(own, tensor.storage()))
        return made(tensor, card, DispatchKey::CUDA, c10::BackendComponent::CUDABit, true, is_inference(card));
    c10::Storage fresh(c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), as_card_memory(tensor.storage()),
                       &card_memory, true);
    return made(tensor, fresh, DispatchKey::CUDA, c10::BackendComponent::CUDABit, false, false);
  }

  // Take over sizes and memory that an operation with `out=`, or one that resizes, has changed.
  void settle() {
    for (auto& [card, own] : storages_) {
      if (own.data() == card.data() && own.nbytes() == card.nbytes()) continue;
      card.set_data_ptr_noswap(as_card_memory(kept_alive(own, c10::Device(c10::DeviceType::CPU))));
      card.set_nbytes(own.nbytes());
    }
    for (auto& [card, own] : tensors_)
      if (card.sizes() != own.sizes() || card.strides() != own.strides())
        card.unsafeGetTensorImpl()->set_sizes_and_strides(own.sizes(), own.strides(), own.storage_offset());
  }

 private:
  static bool same(const c10::Storage& one, const c10::Storage& other) {
    return one.unsafeGetStorageImpl() == other.unsafeGetStorageImpl();
  }

  // Another storage over the memory of `storage`, which stays as long as this one does.
  static c10::Storage kept_alive(const c10::Storage& storage, c10::Device device) {
    auto release = [](void* context) { delete static_cast<c10::Storage*>(context); };
    c10::DataPtr data(const_cast<void*>(storage.data()), new c10::Storage(storage), release, device);
    return {c10::Storage::use_byte_size_t(), storage.nbytes(), std::move(data), c10::GetCPUAllocator(), true};
  }

  c10::Storage processor_storage(const c10::Storage& storage) {
    for (auto& [card, own] : storages_)
      if (same(card, storage)) return own;
    storages_.emplace_back(storage, kept_alive(storage, c10::Device(c10::DeviceType::CPU)));
    return storages_.back().second;
  }

  bool is_inference(const c10::Storage& storage) {
    for (auto& [card, own] : tensors_)
      if (same(card.storage(), storage)) return card.is_inference();
    return false;
  }

  static Tensor made(const Tensor& like, const c10::Storage& storage, DispatchKey key, c10::BackendComponent backend,
                     bool is_view, bool is_inference) {
    auto keys = DispatchKeySet(key);
    if (is_view) keys = keys | c10::getAutocastRelatedKeySetFromBackend(backend);
    if (is_view && !is_inference) keys = keys | c10::getAutogradRelatedKeySetFromBackend(backend);
    auto type = like.unsafeGetTensorImpl()->dtype();
    auto kept = storage;
    Tensor tensor = is_view ? at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, std::move(kept), keys, type)
                            : at::detail::make_tensor<c10::TensorImpl>(std::move(kept), keys, type);
    tensor.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    if (like.is_conj()) tensor._set_conj(true);
    if (like.is_neg()) tensor._set_neg(true);
    return tensor;
  }

  std::vector<std::pair<c10::Storage, c10::Storage>> storages_;
  std::vector<std::pair<Tensor, Tensor>> tensors_;
};

Tensor on_processor(const Tensor& tensor) {
  Views views;
  return views.processor(tensor);
}

// ------------------------------------------------------------------------------------------------ copies

// A copy that the card was asked for and that nobody has waited for. Beside the computation it reads its source
// as late as it is made; on the stream that computes, what is computed afterwards must not be seen.
struct Copy {
  Number stream, number;
  Tensor target, source;
  bool is_source_kept;  // its memory is not given to others: `record_stream`, or no memory of the card
};

std::mutex copies_lock;
std::vector<Copy> copies;
std::atomic<Number> num_copies{0};

bool overlap(const Tensor& one, const Tensor& other) {
  return one.storage().data() == other.storage().data();
}

void make(const Copy& copy) {
  at::AutoDispatchBelowADInplaceOrView below;
  bool is_lost = !copy.is_source_kept && copy.source.storage().use_count() == 1;
  if (is_lost)
    std::memset(copy.target.data_ptr(), UNKNOWN, copy.target.nbytes());
  else
    on_processor(copy.target).copy_(on_processor(copy.source));
}

// Make what was asked for on a stream (-1: on all) up to a number, in order.
void make_copies(Number stream, Number last) {
  std::lock_guard<std::mutex> guard(copies_lock);
  std::vector<Copy> rest;
  for (auto& copy : copies) {
    if ((stream < 0 || copy.stream == stream) && copy.number <= last)
      make(copy);
    else
      rest.push_back(copy);
  }
  copies.swap(rest);
}

// Make those copies of this stream that are to be made before another one may touch these tensors.
void make_copies_before(const Tensor& target, const Tensor& source) {
  Number last = -1;
  {
    std::lock_guard<std::mutex> guard(copies_lock);
    for (auto& copy : copies)
      if (overlap(copy.source, target) || overlap(copy.target, target) || overlap(copy.target, source))
        last = copy.number;
  }
  make_copies(current_stream, last);
}

void wait_for_card(const std::string& what) {
  tell(what);
  make_copies(current_stream, EVERYTHING);
}

Tensor& copy_(Tensor& target, const Tensor& source, bool is_asynchronous) {
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
  Views views;
  Tensor to = views.processor(target), from = views.processor(source);
  bool is_inside = target.is_cuda() && source.is_cuda(), comes = source.is_cuda();
  const Tensor& host = comes ? target : source;
  if (is_inside || !source.numel()) {
    to.copy_(from);
  } else if (!is_asynchronous || !is_pinned(host.data_ptr())) {
    wait_for_card(comes ? "a copy to the host" : "a copy from the host");
    to.copy_(from);
  } else if (!comes && current_stream == 0) {
    make_copies_before(target, source);
    to.copy_(from);  // nothing computes between now and then
  } else {
    make_copies_before(target, source);
    bool is_beside = current_stream != 0;
    Tensor read = is_beside ? source : from.clone();
    if (target.is_contiguous()) std::memset(target.data_ptr(), UNKNOWN, target.nbytes());
    std::lock_guard<std::mutex> guard(copies_lock);
    copies.push_back({current_stream, ++num_copies, target, read, !(comes && is_beside)});
  }
  return target;
}

void keep_source(const Tensor& tensor) {
  std::lock_guard<std::mutex> guard(copies_lock);
  for (auto& copy : copies)
    if (overlap(copy.source, tensor)) copy.is_source_kept = true;
}

// -------------------------------------------------------------------------------------------- operations

using Names = std::set<std::string>;
const Names WAIT = {
    "aten::nonzero", "aten::masked_select", "aten::equal", "aten::_unique2", "aten::unique_dim",
    "aten::unique_consecutive", "aten::bincount", "aten::histc", "aten::_linalg_svd", "aten::_linalg_eigh",
    "aten::_linalg_solve_ex", "aten::linalg_inv_ex", "aten::linalg_lu_factor_ex", "aten::linalg_qr",
    "aten::linalg_eig", "aten::linalg_lstsq", "aten::linalg_matrix_exp",
};
const Names INDEX = {"aten::index", "aten::index_put_", "aten::_index_put_impl_", "aten::index_put",
                     "aten::_unsafe_index"};
const Names TAKE_NO_NUMBER_OF_THE_HOST = {"aten::cat", "aten::index_select", "aten::gather", "aten::scatter",
                                          "aten::embedding", "aten::mm", "aten::addmm", "aten::bmm",
                                          "aten::native_layer_norm", "aten::native_group_norm",
                                          "aten::convolution"};

// One call of an operation, whose arguments lie on the stack.
class Call {
 public:
  Call(const c10::OperatorHandle& operation, torch::jit::Stack* stack)
      : operation_(operation), name_(operation.schema().name()), stack_(stack) {}

  void run() {
    size_t count = operation_.schema().arguments().size();
    for (size_t i = 0; i < count; i++) (*stack_)[stack_->size() - count + i] = argument(i, (*stack_)[stack_->size() - count + i]);
    bool mixes = has_host_ || (has_host_number_ && TAKE_NO_NUMBER_OF_THE_HOST.count(name_));
    TORCH_CHECK(!(has_card_ && mixes), "Expected all tensors to be on the same device, but found at least two "
                "devices, cuda:0 and cpu! (", name_, ")");
    if (has_mask_ || WAIT.count(name_) || (name_ == "aten::repeat_interleave" && count == 2)) wait_for_card(name_);
    operation_.redispatchBoxed(DispatchKeySet(DispatchKey::CPU), stack_);
    views_.settle();
    size_t first = stack_->size() - operation_.schema().returns().size();
    for (size_t i = first; i < stack_->size(); i++) (*stack_)[i] = result((*stack_)[i]);
  }

 private:
  c10::IValue argument(size_t i, const c10::IValue& value) {
    if (value.isTensor()) return seen(value.toTensor(), i);
    if (value.isTensorList()) {
      c10::List<Tensor> list;
      for (const Tensor& each : value.toTensorVector()) list.push_back(seen(each, i));
      return list;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<Tensor>> list;
      for (const std::optional<Tensor>& each : value.toOptionalTensorList().vec())
        list.push_back(each ? std::optional<Tensor>(seen(*each, i)) : each);
      return list;
    }
    if (value.isDevice() && value.toDevice().is_cuda()) {
      has_card_ = true;
      return c10::Device(c10::DeviceType::CPU);
    }
    return takes_generator(i) ? generator(value) : value;
  }

  Tensor seen(const Tensor& tensor, size_t i) {
    if (!tensor.defined()) return tensor;
    bool is_index = i == 1 && INDEX.count(name_);
    if (tensor.is_cuda()) {
      has_card_ = true;
      has_mask_ |= is_index && (tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte);
    } else if (tensor.is_cpu() && !is_index) {
      has_host_ |= tensor.dim() > 0;
      has_host_number_ |= !tensor.dim() && !tensor.unsafeGetTensorImpl()->is_wrapped_number();
    }
    return views_.processor(tensor);
  }

  bool takes_generator(size_t i) const {
    return operation_.schema().arguments()[i].type()->str().find("Generator") != std::string::npos;
  }

  static c10::IValue generator(const c10::IValue& given) {
    at::Generator generator = given.isNone() ? default_generator() : given.toGenerator();
    TORCH_CHECK(generator.device().is_cuda(), "Expected a 'cuda' device type for generator but found '",
                generator.device().type(), "'");
    return generator.get<CardGenerator>()->inner;
  }

  c10::IValue result(const c10::IValue& value) {
    if (value.isTensor()) return views_.card(value.toTensor());
    if (!value.isTensorList()) return value;
    c10::List<Tensor> list;
    for (const Tensor& each : value.toTensorVector()) list.push_back(views_.card(each));
    return list;
  }

  const c10::OperatorHandle& operation_;
  const std::string& name_;
  torch::jit::Stack* stack_;
  Views views_;
  bool has_card_ = false, has_host_ = false, has_host_number_ = false, has_mask_ = false;
};

void compute(const c10::OperatorHandle& operation, DispatchKeySet, torch::jit::Stack* stack) {
  at::AutoDispatchBelowADInplaceOrView below;
  c10::impl::ExcludeDispatchKeyGuard plain(c10::autocast_dispatch_keyset);
  Call(operation, stack).run();
}

Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> type, std::optional<c10::Layout>,
             std::optional<c10::Device>, std::optional<bool> pin, std::optional<c10::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "Only dense CPU tensors can be pinned");
  auto keys = DispatchKeySet(DispatchKey::CUDA);
  return at::detail::empty_generic(size, &card_memory, keys, c10::dtype_or_default(type), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<c10::ScalarType> type,
                     std::optional<c10::Layout>, std::optional<c10::Device>, std::optional<bool>) {
  auto keys = DispatchKeySet(DispatchKey::CUDA);
  return at::detail::empty_strided_generic(size, stride, &card_memory, keys, c10::dtype_or_default(type));
}

at::Scalar read_number(const Tensor& tensor) {
  wait_for_card("a number that is read");
  at::AutoDispatchBelowADInplaceOrView below;
  return on_processor(tensor).item();
}

const Tensor& resize(const Tensor& tensor, c10::IntArrayRef size, std::optional<c10::MemoryFormat> format) {
  return at::native::resize_(tensor, size, format);
}

Tensor& set_storage(Tensor& tensor, c10::Storage storage, Number offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::set_storage_cpu_(tensor, std::move(storage), offset, size, stride);
}

Tensor& set_tensor(Tensor& tensor, const Tensor& other) {
  return set_storage(tensor, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}

Number attention_kernel(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                        std::optional<double>, bool) {
  return 0;  // the one that is made of products
}

}  // namespace

TORCH_LIBRARY_IMPL(_, CUDA, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&compute>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("copy_", copy_);
  library.impl("_local_scalar_dense", read_number);
  library.impl("_fused_sdp_choice", attention_kernel);
  library.impl("resize_", resize);
  library.impl("set_.source_Storage_storage_offset", set_storage);
  library.impl("set_.source_Tensor", set_tensor);
  for (auto* name : {"convolution", "convolution_backward"})  // they would choose a kernel of CUDA's
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&compute>());
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  c10::SetAllocator(c10::DeviceType::CUDA, &card_memory);
  // PyTorch has made its answers about CUDA when it was imported; from now on they are ours.
  static Hooks hooks;
  auto* made = const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks());
  *reinterpret_cast<void**>(made) = *reinterpret_cast<void**>(&hooks);
  module.def("listen", [](py::object function) { listener = new py::object(std::move(function)); });
  module.def("pin", [](Number place, Number size) { note_pinned(reinterpret_cast<void*>(place), size); });
  module.def("unpin", [](Number place) { forget_pinned(reinterpret_cast<void*>(place)); });
  module.def("live", [] { return live.load(); });
  module.def("peak", [] { return peak.load(); });
  module.def("reset_peak", [] { peak = live.load(); });
  module.def("current_stream", [] { return current_stream; });
  module.def("set_stream", [](Number stream) { return std::exchange(current_stream, stream); });
  module.def("keep_source", keep_source);
  module.def("num_copies", [] { return num_copies.load(); });
  module.def("make_copies", [](Number stream, Number last) { make_copies(stream, last < 0 ? EVERYTHING : last); });
  module.def("default_generator", [] { return default_generator(); });
}
