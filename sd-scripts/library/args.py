"""What programs import from sd-scripts' module of this name; other names say what to use instead."""

from sfumato.clients.names import offer

__getattr__ = offer("library.args")
