//go:build unix && !linux

package hsmtest

import (
	"os/exec"
	"syscall"
)

// isolate puts cmd in a process group of its own.
func isolate(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

func superviseThread(f func()) { f() }
