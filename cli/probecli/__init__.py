"""The commands: parse, call one function, show one result."""
