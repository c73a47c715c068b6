"""Debuggers among the programs of a machine: ptrace(2) for tracees that we trace already.

A thread has one tracer, and in a machine that is the supervisor: the kernel refuses
another. So gdb inside the tree is answered by us, as its kernel would: it starts or
attaches to a program, is told of its stops by wait4(2), waitid(2) and SIGCHLD, reads
and changes registers and memory, and lets it go on. PRoot and gVisor do the same.

Two worlds of stops. A *real* stop is the kernel's, reported to us; most of them are our
own business (a filtered call, an ENCLU, a kick of the page service) and no debugger sees
them. A *shown* stop is what the debugger of a thread is told of; the thread stays in the
real stop behind it until its debugger has it go on. All real stops are left through one
gate (`Tracer.resume`), and for a tracee that is where a stop is shown or not (`stops`).

=============  ==============================================================
`state`        who debugs whom, what each is to be told
`stops`        the gate: which real stops are shown, holding and going on
`lives`        events, followed children, ends of tracees and of debuggers
`joining`      TRACEME, ATTACH, SEIZE; what a process needs before it can debug
`requests`     every other request: registers, memory, options
`waits`        wait4 and waitid of a debugger
=============  ==============================================================

Memory of enclaves is read and written as by EDBGRD and EDBGWR (`debugmem`). A thread
inside an enclave is stopped as the processor stops it: it leaves by an asynchronous
exit, and is shown at the AEP; its registers inside are in its SSA frame.

Nobody waits for a debugger but its tracees: we hold no lock and no thread of ours for a
stopped one. When a debugging thread ends, however it ends, its tracees go on (or die
with it, PTRACE_O_EXITKILL). A process that debugs nobody pays nothing: its calls of
ptrace and wait are reported to us only from its first TRACEME, ATTACH or SEIZE on.

Rejected: handing our tracees over to the debugger for a while. It would not know our
traps, and pages, ioctls and ENCLUs of its tracees would find nobody.
"""
