//go:build unix && !linux

package postgrestest

import (
	"fmt"
	"os/exec"
	"strings"
	"syscall"
)

func attributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func supervise(f func()) { f() }

func zombie(int) bool { return false }

// family returns the process and its children, which have process groups of their own.
func family(pid int) []int {
	all := []int{pid}
	out, _ := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	for line := range strings.Lines(string(out)) {
		var child, parent int
		if _, err := fmt.Sscan(line, &child, &parent); err == nil && parent == pid {
			all = append(all, child)
		}
	}
	return all
}
