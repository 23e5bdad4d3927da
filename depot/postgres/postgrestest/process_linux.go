package postgrestest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
)

// attributes have a process killed with the test binary.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// supervise runs f on one thread that lives until f returns: Pdeathsig goes by the thread that
// started the process.
func supervise(f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	f()
}

// family returns the process and its children, which have process groups of their own.
func family(pid int) []int {
	all := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for _, word := range bytes.Fields(list) {
			if child, err := strconv.Atoi(string(word)); err == nil {
				all = append(all, child)
			}
		}
	}
	return all
}

// zombie reports whether a process has ended, and only its number is left.
func zombie(pid int) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := bytes.Cut(stat, []byte(") ")) // after the name; servers have no ")" in theirs
	return bytes.HasPrefix(rest, []byte("Z"))
}
