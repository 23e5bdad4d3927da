//go:build unix

package postgrestest

import (
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

const (
	unix        = true
	sigStop     = syscall.SIGSTOP
	sigContinue = syscall.SIGCONT
)

// credential returns the user that the server runs as, or nil if it is that of the test.
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

// unprivileged has cmd run as the server's user.
func unprivileged(cmd *exec.Cmd) {
	cmd.SysProcAttr = attributes()
	cmd.SysProcAttr.Credential = credential()
	if cmd.Dir == "" {
		cmd.Dir = "/"
	}
}

// own gives a folder to the server's user.
func own(dir string) error {
	c := credential()
	if c == nil {
		return nil
	}
	return os.Chown(dir, int(c.Uid), int(c.Gid))
}

func signal(sig syscall.Signal, pids ...int) {
	for _, pid := range pids {
		syscall.Kill(pid, sig)
	}
}

// alive reports whether a process goes on. One that has ended, and that nobody has waited for yet,
// does not.
func alive(pid int) bool { return syscall.Kill(pid, 0) == nil && !zombie(pid) }
