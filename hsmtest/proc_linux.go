package hsmtest

import (
	"os/exec"
	"runtime"
	"syscall"
)

// isolate puts cmd in a process group of its own, and has it killed with the test binary.
func isolate(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// superviseThread runs f on one thread that lives until f returns: Pdeathsig goes by the
// thread that started the process, not by its process.
func superviseThread(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
}
