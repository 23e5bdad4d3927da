//go:build unix

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// apart keeps a terminal's ^C from a process.
func apart(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} }

// slayOrder, read by keep, has it kill.
const slayOrder = "kill -9\n"

// keep runs a program, as another user if this one is root, which PostgreSQL refuses to run as.
// When stdin ends, it has the program end in order; when slayOrder comes, it kills the program and
// all its children at once. It returns when they are gone.
func keep(stdin io.Reader, args []string) error {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = os.Stderr, os.Stderr, "/"
	apart(cmd)
	cmd.SysProcAttr.Credential = credential()
	if err := cmd.Start(); err != nil {
		return err
	}
	orders := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdin).ReadString('\n')
		orders <- line
	}()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case order := <-orders:
		if order != slayOrder {
			cmd.Process.Signal(syscall.SIGINT)
			select {
			case err := <-ended:
				return err
			case <-time.After(20 * time.Second):
			}
		}
	}
	all := family(cmd.Process.Pid)
	signalAll(syscall.SIGSTOP, all) // or the first to see another die would start a new one
	all = family(cmd.Process.Pid)
	signalAll(syscall.SIGKILL, all)
	<-ended
	// Those that the program started are not ours to wait for, and where nobody waits for them they
	// never quite end.
	for deadline := time.Now().Add(2 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if !slices.ContainsFunc(all, func(pid int) bool { return syscall.Kill(pid, 0) == nil }) {
			break
		}
	}
	return nil
}

func signalAll(sig syscall.Signal, pids []int) {
	for _, pid := range pids {
		syscall.Kill(pid, sig)
	}
}

// family returns a process and its children.
func family(pid int) []int {
	all := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for word := range bytes.FieldsSeq(list) {
			if n, err := strconv.Atoi(string(word)); err == nil {
				all = append(all, n)
			}
		}
	}
	if len(tasks) > 0 {
		return all
	}
	out, _ := exec.Command("ps", "-A", "-o", "pid=,ppid=").Output()
	for line := range strings.Lines(string(out)) {
		var n, parent int
		if _, err := fmt.Sscan(line, &n, &parent); err == nil && parent == pid {
			all = append(all, n)
		}
	}
	return all
}

// credential returns the user that the database runs as, or nil if it is this one.
func credential() *syscall.Credential {
	if os.Getuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	return nil
}

// own makes a folder that belongs to the user that the database runs as.
func own(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if c := credential(); c != nil {
		return os.Chown(dir, int(c.Uid), int(c.Gid))
	}
	return nil
}
