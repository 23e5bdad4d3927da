package exampletest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A Token is a SoftHSM token whose label is ca.
type Token struct {
	Module, Dir string
	PIN         string
	PINFile     string
	Env         []string // of programs that use it
}

// SoftHSM makes a token.
func SoftHSM(t *testing.T) *Token {
	t.Helper()
	if !cgo {
		t.Skip("built without cgo, which PKCS#11 needs")
	}
	util := Need(t, "softhsm2-util", "softhsm2")
	var module string
	for _, pattern := range []string{"/usr/lib/softhsm/libsofthsm2.so", "/usr/lib/*/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so"} {
		if found, _ := filepath.Glob(pattern); module == "" && len(found) > 0 {
			module = found[0]
		}
	}
	if module == "" {
		Need(t, "libsofthsm2.so", "libsofthsm2")
	}
	dir := t.TempDir()
	k := &Token{Module: module, Dir: filepath.Join(dir, "tokens"), PIN: "8364925017"}
	if err := os.Mkdir(k.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	k.Env = []string{"SOFTHSM2_CONF=" + Write(t, dir, "softhsm2.conf", "directories.tokendir = "+k.Dir+"\n")}
	k.PINFile = Write(t, dir, "pin", k.PIN+"\n")
	Run(t, k.Env, dir, util, "--init-token", "--free", "--label", "ca", "--so-pin", "87654321", "--pin", k.PIN)
	return k
}

// URI returns that of a key in the token.
func (k *Token) URI(object string) string {
	return "pkcs11:token=ca;object=" + object + "?module-path=" + k.Module + "&pin-source=file:" + k.PINFile
}

// A TPM is a TPM 2.0 on a socket.
type TPM struct {
	Socket string
	Stop   func()
	Start  func()
}

// NewTPM starts a TPM, which keeps its state when it is stopped.
func NewTPM(t *testing.T) *TPM {
	t.Helper()
	swtpm := Need(t, "swtpm", "swtpm")
	dir, err := os.MkdirTemp("", "tpm") // the name of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	m := &TPM{Socket: filepath.Join(dir, "sock")}
	var cmd *exec.Cmd
	m.Stop = func() {
		if cmd != nil {
			cmd.Process.Kill()
			cmd.Wait()
			cmd = nil
		}
	}
	m.Start = func() {
		t.Helper()
		os.Remove(m.Socket)
		cmd = exec.Command(swtpm, "socket", "--tpm2", "--tpmstate", "dir="+dir, "--server", "type=unixio,path="+m.Socket, "--flags", "not-need-init,startup-clear")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for range 500 {
			if conn, err := net.Dial("unix", m.Socket); err == nil {
				conn.Close()
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Fatal("the TPM did not start")
	}
	t.Cleanup(func() { m.Stop() })
	m.Start()
	return m
}
