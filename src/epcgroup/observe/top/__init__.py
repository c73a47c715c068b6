"""`epcgroup top`: a machine's EPC on a terminal, by cgroup, enclave and process.

`rows` decides what is shown and in which order and knows no terminal; `table`
draws the rows that are on screen and no others (ten thousand cgroups are usual);
`app` joins them with the keyboard, `dialogs` holds what asks a question.
"""
