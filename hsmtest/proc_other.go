//go:build !unix

package hsmtest

import (
	"errors"
	"net"
	"os"
	"os/exec"
)

// No device starts here; see policy.
const unix = false

func isolate(*exec.Cmd) {}

func superviseThread(f func()) { f() }

func killGroup(cmd *exec.Cmd) { _ = cmd.Process.Kill() }

func socketpair() (net.Conn, *os.File, error) { return nil, nil, errors.ErrUnsupported }

func mapFile(*os.File, int) ([]byte, error) { return nil, errors.ErrUnsupported }
