package hsmtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// A RemoteToken is a token in another process, which can go away as a network HSM does. Its
// methods may be called concurrently, except those of [Token] that say otherwise.
type RemoteToken struct {
	*Token

	t      testing.TB
	server string // program
	socket string
	module string // behind the server
	mu     sync.Mutex
	proc   *process // nil while it is down
}

// Remote puts p11-kit-server before tok, in a process of its own. The Module is p11-kit's client,
// which finds the server through a variable of the process: a test holds the one Remote that
// there can be until it ends, and others wait.
func Remote(t testing.TB, tok *Token) *RemoteToken {
	t.Helper()
	policy(t)
	server := program(t, "p11-kit-server", "p11-kit", "/usr/libexec/p11-kit/p11-kit-server",
		"/usr/lib/*/p11-kit/p11-kit-server", "/usr/lib/p11-kit/p11-kit-server", "/opt/homebrew/libexec/p11-kit/p11-kit-server")
	lib := library(t, "p11-kit-client.so", "p11-kit-modules", "/usr/lib/*/pkcs11/p11-kit-client.so",
		"/usr/lib64/pkcs11/p11-kit-client.so", "/usr/lib/pkcs11/p11-kit-client.so", "/opt/homebrew/lib/pkcs11/p11-kit-client.so")
	remoteTurn.take(t, "Remote")

	k := *tok
	r := &RemoteToken{Token: &k, t: t, server: server, socket: filepath.Join(shortDir(t), "p11"), module: tok.Module}
	k.Module = copyFile(t, lib, t.TempDir())
	const name = "P11_KIT_SERVER_ADDRESS"
	k.env = append(tok.Env(), name+"=unix:path="+r.socket)
	t.Cleanup(setenv(name, "unix:path="+r.socket))
	t.Cleanup(r.Kill)
	r.Start()
	return r
}

// Start starts the server if it is down, and waits until it listens.
func (r *RemoteToken) Start() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc != nil {
		return
	}
	os.Remove(r.socket)
	cmd := exec.Command(r.server, "-f", "-n", r.socket, "-p", r.module, "pkcs11:token="+escape(r.Label))
	cmd.Env = append(os.Environ(), r.env...)
	proc, err := spawn(cmd)
	if err != nil {
		r.t.Errorf("hsmtest: p11-kit-server: %v", err)
		return
	}
	r.proc = proc
	for {
		if conn, err := net.Dial("unix", r.socket); err == nil {
			conn.Close()
			return
		}
		select {
		case <-proc.done:
			r.proc = nil
			r.t.Errorf("hsmtest: p11-kit-server ended: %s", proc.log.String())
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// Kill kills the server and its children, and returns when they are gone.
func (r *RemoteToken) Kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc != nil {
		r.proc.kill()
		r.proc = nil
	}
}

// Restart is Kill and Start. A module that was initialised before stays broken until it is
// finalised and initialised again.
func (r *RemoteToken) Restart() {
	r.Kill()
	r.Start()
}

// remoteTurn and nssTurn are held by the one test of the process that uses the device: p11-kit
// takes its address from the environment, and NSS cannot be loaded twice.
var remoteTurn, nssTurn turn

// A turn is held by one test at a time.
type turn struct {
	held sync.Mutex
	mu   sync.Mutex
	name string // of the test that holds it
}

// take waits for the turn and gives it back when the test ends.
func (u *turn) take(t testing.TB, what string) {
	t.Helper()
	u.mu.Lock()
	name := u.name
	u.mu.Unlock()
	if name != "" && strings.HasPrefix(t.Name()+"/", name+"/") {
		t.Fatalf("hsmtest: %s already has the one %s there can be", name, what)
	}
	u.held.Lock()
	u.set(t.Name())
	t.Cleanup(func() {
		u.set("")
		u.held.Unlock()
	})
}

func (u *turn) set(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.name = name
}
