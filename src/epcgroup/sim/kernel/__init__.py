"""The engine's rules, flattened and compiled; each part names the module of `epc` that it repeats."""
