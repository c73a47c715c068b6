// A static Go program that loads the enclave of a file (see ../package.py) and enters it from
// goroutines, with raw system calls and bare ENCLU: no libc, small stacks, signals for preemption.
package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"
)

func enter(tcs, call uintptr)
func aep()
func sgx() uint32

const (
	create, add, initialise = 0x4008a400, 0xc030a401, 0x4008a402
	pages                   = 64
)

type call struct {
	mode, count, first, length, state, list uint64
	versions                                uintptr
	seed, write, done, mismatches           uint64
	rest                                    [8]uint64
}

func check(what string, number syscall.Errno) {
	if number != 0 {
		fmt.Printf("not ok %s: %v\n", what, number)
		os.Exit(1)
	}
}

func ioctl(fd int, request, argument uintptr) {
	for {
		_, _, number := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, argument)
		if number != syscall.EINTR && number != syscall.EAGAIN {
			check(fmt.Sprintf("ioctl %#x", request), number)
			return
		}
	}
}

func mmap(addr, length, prot, flags uintptr, fd int) uintptr {
	at, _, number := syscall.Syscall6(syscall.SYS_MMAP, addr, length, prot, flags, uintptr(fd), 0)
	check("mmap", number)
	return at
}

func main() {
	file, err := os.ReadFile(os.Args[1])
	if err != nil || sgx() != 1 {
		fmt.Println("not ok", err, "cpuid", sgx())
		os.Exit(1)
	}
	number := func(n int) uintptr { return uintptr(binary.LittleEndian.Uint64(file[8*n:])) }
	size, threads, segments := number(0), int(number(1)), int(number(2))
	fd, err := syscall.Open("/dev/sgx_enclave", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println("not ok open:", err)
		os.Exit(1)
	}
	area := mmap(0, 2*size, 0, 0x4022, -1)
	base := (area + size - 1) &^ (size - 1)
	space := mmap(0, 1<<20, 3, 0x22, -1) // page-aligned: SECS, SECINFO, contents
	view := unsafe.Slice((*byte)(unsafe.Pointer(space)), 1<<20)
	at := 24 + segments*40
	copy(view, file[at:at+4096])
	binary.LittleEndian.PutUint64(view[8:], uint64(base))
	argument := space
	ioctl(fd, create, uintptr(unsafe.Pointer(&argument)))
	at += 4096
	for s := 0; s < segments; s++ {
		field := func(n int) uint64 { return binary.LittleEndian.Uint64(file[24+s*40+8*n:]) }
		length, contents := int(field(1)), int(field(4))
		for i := range view {
			view[i] = 0
		}
		binary.LittleEndian.PutUint64(view, field(2))
		copy(view[4096:], file[at:at+contents])
		at += contents
		request := [6]uint64{uint64(space) + 4096, field(0), uint64(length), uint64(space), field(3), 0}
		for request[2] > 0 {
			request[5] = 0
			ioctl(fd, add, uintptr(unsafe.Pointer(&request)))
			request[0], request[1], request[2] = request[0]+request[5], request[1]+request[5], request[2]-request[5]
		}
	}
	copy(view, file[at:at+1808])
	ioctl(fd, initialise, uintptr(unsafe.Pointer(&argument)))
	heap := uintptr(4096 * (1 + 2*threads))
	mmap(base, 4096, 5, 0x11, fd)
	mmap(base+4096, heap+pages*4096-4096, 3, 0x11, fd)

	var all sync.WaitGroup
	results := make([]call, threads)
	for t := 0; t < threads; t++ {
		all.Add(1)
		go func(t int) {
			defer all.Done()
			runtime.LockOSThread()
			own := pages / threads
			versions := (*[pages]uint64)(unsafe.Pointer(mmap(0, 4096, 3, 0x22, -1)))
			c := &results[t]
			*c = call{count: 20 * uint64(own), first: uint64(t * own), length: uint64(own),
				versions: uintptr(unsafe.Pointer(versions)), seed: 7, write: 1}
			enter(base+uintptr(4096*(1+2*t)), uintptr(unsafe.Pointer(c)))
		}(t)
	}
	for i := 0; i < 100; i++ {
		runtime.GC() // stops the world: signals to threads that are inside
	}
	all.Wait()
	for t := range results {
		fmt.Printf("ok thread %d: %d done, %d wrong\n", t, results[t].done, results[t].mismatches)
	}
}
