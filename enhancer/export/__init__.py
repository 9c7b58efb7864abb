"""Device models as files that plugins play: one module a format, each `export(module, description) -> Exported`."""
