"""The Hugging Face Hub: models and data sets by their names, and the repository for what a run saves.

`names` < `access` < `errors`, `cache`, `selection` < `repository` < `fetching`, `uploading`. May import
`checkpoints` and `config`; `huggingface_hub` is imported by the functions that need it.
"""
