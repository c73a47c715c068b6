module loader

go 1.19
