//go:build unix

package examples_test

import (
	"context"
	"os/exec"
	"syscall"
	"time"
)

// command runs a script; when ctx ends, everything that it started is interrupted, as by ^C.
func command(ctx context.Context, dir, script string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.WaitDelay = time.Minute
	return cmd
}
