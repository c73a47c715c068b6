// A static Rust program that loads the enclave of a file (see ../package.py) and enters it from
// std's threads, by bare ENCLU.
use std::arch::asm;
use std::ffi::{c_int, c_long, c_void};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;

extern "C" {
    fn mmap(at: usize, length: usize, prot: c_int, flags: c_int, fd: c_int, offset: c_long) -> *mut c_void;
    fn ioctl(fd: c_int, request: u64, argument: *mut c_void) -> c_int;
}

const PAGES: usize = 64;

#[repr(C)]
#[derive(Default)]
struct Call {
    mode: u64,
    count: u64,
    first: u64,
    length: u64,
    state: u64,
    list: u64,
    versions: u64,
    seed: u64,
    write: u64,
    done: u64,
    mismatches: u64,
    rest: [u64; 8],
}

fn request<T>(fd: c_int, number: u64, argument: &mut T) {
    while unsafe { ioctl(fd, number, argument as *mut T as *mut c_void) } != 0 {
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(4) | Some(11) => continue,
            _ => panic!("ioctl {number:#x}: {error}"),
        }
    }
}

fn map(at: usize, length: usize, prot: c_int, flags: c_int, fd: c_int) -> usize {
    let place = unsafe { mmap(at, length, prot, flags, fd, 0) } as isize;
    assert!(place != -1, "mmap: {}", std::io::Error::last_os_error());
    place as usize
}

// The AEP is an ENCLU of its own: with eax 3 it resumes.
fn enter(tcs: usize, call: &mut Call) {
    unsafe {
        asm!(
            "push rbx", "push rbp",
            "mov rbx, {tcs}",
            "lea rcx, [rip + 3f]",
            "mov eax, 2",
            ".byte 0x0f, 0x01, 0xd7",
            "jmp 4f",
            "3: .byte 0x0f, 0x01, 0xd7",
            "4: pop rbp", "pop rbx",
            tcs = in(reg) tcs, in("rdi") call,
            out("rax") _, out("rcx") _, out("rdx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _,
            out("r11") _, out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}

fn main() {
    let mut file = Vec::new();
    File::open(std::env::args().nth(1).unwrap()).unwrap().read_to_end(&mut file).unwrap();
    let number = |at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    assert!(core::arch::x86_64::__cpuid_count(7, 0).ebx >> 2 & 1 == 1, "CPUID knows no SGX");
    let (size, threads, segments) = (number(0), number(8), number(16));
    let device = OpenOptions::new().read(true).write(true).open("/dev/sgx_enclave").unwrap();
    let fd = device.as_raw_fd();
    let area = map(0, 2 * size, 0, 0x4022, -1);
    let base = (area + size - 1) & !(size - 1);
    let space = map(0, 1 << 20, 3, 0x22, -1);
    let view = unsafe { std::slice::from_raw_parts_mut(space as *mut u8, 1 << 20) };
    let mut at = 24 + segments * 40;
    view[..4096].copy_from_slice(&file[at..at + 4096]);
    view[8..16].copy_from_slice(&base.to_le_bytes());
    request(fd, 0x4008a400, &mut space.clone());
    at += 4096;
    for segment in 0..segments {
        let field = |n: usize| number(24 + segment * 40 + 8 * n);
        view.fill(0);
        view[..8].copy_from_slice(&field(2).to_le_bytes());
        view[4096..4096 + field(4)].copy_from_slice(&file[at..at + field(4)]);
        at += field(4);
        let mut add = [space + 4096, field(0), field(1), space, field(3), 0];
        while add[2] > 0 {
            add[5] = 0;
            request(fd, 0xc030a401, &mut add);
            add = [add[0] + add[5], add[1] + add[5], add[2] - add[5], space, add[4], 0];
        }
    }
    view[..1808].copy_from_slice(&file[at..at + 1808]);
    request(fd, 0x4008a402, &mut space.clone());
    map(base, 4096, 5, 0x11, fd);
    map(base + 4096, 4096 * (2 * threads + PAGES), 3, 0x11, fd);
    let workers: Vec<_> = (0..threads)
        .map(|thread| {
            std::thread::spawn(move || {
                let own = PAGES / threads;
                let versions = vec![0u64; PAGES];
                let mut call = Call {
                    count: 20 * own as u64, first: (thread * own) as u64, length: own as u64,
                    versions: versions.as_ptr() as u64, seed: 7, write: 1, ..Default::default()
                };
                enter(base + 4096 * (1 + 2 * thread), &mut call);
                (call.done, call.mismatches)
            })
        })
        .collect();
    for (thread, worker) in workers.into_iter().enumerate() {
        let (done, wrong) = worker.join().unwrap();
        println!("ok thread {thread}: {done} done, {wrong} wrong");
    }
}
