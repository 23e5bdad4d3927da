//go:build !unix

package postgrestest

import (
	"os/exec"
	"syscall"
)

const (
	unix        = false
	sigStop     = syscall.SIGKILL
	sigContinue = syscall.SIGKILL
)

func unprivileged(*exec.Cmd)        {}
func own(string) error              { return nil }
func supervise(f func())            { f() }
func signal(syscall.Signal, ...int) {}
func alive(int) bool                { return false }
func family(pid int) []int          { return []int{pid} }
