package lab

import "encoding/binary"

// stubCode is the stand-in for a VMM: a program that waits, and nothing else.
// A thousand of them must fit on one host, and each page counts: this one has a
// page of code and one of stack. SIGTERM kills it, SIGUSR1 makes it exit with 0
// as a VMM does when its guest powers off, SIGUSR2 with 2 as a failing one.
//
// It waits for the two signals with rt_sigtimedwait and exits with the signal's
// number less ten: SIGUSR1 is 10, SIGUSR2 is 12.
var stubCode = []byte{
	0x48, 0x83, 0xec, 0x10, // sub rsp, 16
	0x48, 0xc7, 0x04, 0x24, 0x00, 0x0a, 0x00, 0x00, // mov qword [rsp], 0xa00: SIGUSR1 and SIGUSR2
	0x31, 0xff, // xor edi, edi: SIG_BLOCK
	0x48, 0x89, 0xe6, // mov rsi, rsp
	0x31, 0xd2, // xor edx, edx
	0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
	0xb8, 0x0e, 0x00, 0x00, 0x00, // mov eax, 14: rt_sigprocmask
	0x0f, 0x05, // syscall
	// wait:
	0x48, 0x89, 0xe7, // mov rdi, rsp
	0x31, 0xf6, // xor esi, esi
	0x31, 0xd2, // xor edx, edx: no timeout
	0x41, 0xba, 0x08, 0x00, 0x00, 0x00, // mov r10d, 8
	0xb8, 0x80, 0x00, 0x00, 0x00, // mov eax, 128: rt_sigtimedwait
	0x0f, 0x05, // syscall
	0x85, 0xc0, // test eax, eax
	0x78, 0xe8, // js wait: interrupted, by a freeze for one
	0x8d, 0x78, 0xf6, // lea edi, [rax-10]
	0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, 60: exit
	0x0f, 0x05, // syscall
}

// stubProgram is stubCode as a static ELF executable for x86-64: header, one
// segment that holds all, code.
func stubProgram() []byte {
	const (
		base       = 0x400000
		headerSize = 64
		entrySize  = 56
		page       = 4096
	)
	size := uint64(headerSize + entrySize + len(stubCode))
	le := binary.LittleEndian
	b := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	b = le.AppendUint16(b, 2)  // executable
	b = le.AppendUint16(b, 62) // x86-64
	b = le.AppendUint32(b, 1)  // version
	b = le.AppendUint64(b, base+headerSize+entrySize)
	b = le.AppendUint64(b, headerSize) // program headers
	b = le.AppendUint64(b, 0)          // no section headers
	b = le.AppendUint32(b, 0)          // flags
	for _, v := range []uint16{headerSize, entrySize, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(b, 1) // load
	b = le.AppendUint32(b, 5) // read and execute
	for _, v := range []uint64{0, base, base, size, size, page} {
		b = le.AppendUint64(b, v)
	}
	return append(b, stubCode...)
}
