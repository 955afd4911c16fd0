"""probes of the core; import the module you need."""
