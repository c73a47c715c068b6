"""A small compiler: functions of integers and tables, from Python's syntax to machine code that is kept."""
