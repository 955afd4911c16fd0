"""report of the core; import the module you need."""
