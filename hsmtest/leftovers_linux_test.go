package hsmtest

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// running returns how many processes have text on their command line; those that only wait to
// be reaped have none.
func running(text string) (n int) {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, line := range lines {
		if b, err := os.ReadFile(line); err == nil && bytes.Contains(b, []byte(text)) {
			n++
		}
	}
	return n
}

// devices starts a TPM and a remote token with a client, so that its server has a child. The
// command lines of all three processes hold the name of the temporary folder.
func devices(t *testing.T) {
	TPM(t)
	r := Remote(t, SoftHSM(t))
	r.Generate(t, "ca", "01", "EC:prime256v1")
	client := exec.Command(program(t, "pkcs11-tool", "opensc"), "--module", r.Module, "--test-hotplug")
	client.Env = append(os.Environ(), r.env...)
	in, err := client.StdinPipe() // it waits for a line
	if err != nil {
		t.Fatal(err)
	}
	p, err := spawn(client)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.kill() })
	t.Cleanup(func() { in.Close() })
	until(func() bool { return running(r.module) == 2 })
}

// Nothing is left when a test ends: no TPM, no server, no child of it.
func TestLeftovers(t *testing.T) {
	tmp := shortDir(t)
	t.Setenv("TMPDIR", tmp)
	t.Run("devices", func(t *testing.T) {
		devices(t)
		if n := running(tmp); n < 3 {
			t.Errorf("%d processes run, want 3 or more", n)
		}
	})
	if n := running(tmp); n != 0 {
		t.Errorf("%d processes are left", n)
	}
	if files, _ := os.ReadDir(tmp); len(files) != 0 {
		t.Errorf("files are left: %v", files)
	}
}

// Nothing goes on running when the test binary is killed.
func TestLeftoversKilled(t *testing.T) {
	const child = "HSMTEST_CHILD"
	if os.Getenv(child) != "" {
		devices(t)
		os.Stdout.WriteString("ready\n")
		select {}
	}
	policy(t)
	program(t, "swtpm", "swtpm")
	tmp := shortDir(t)
	cmd := exec.Command(os.Args[0], "-test.run=^TestLeftoversKilled$")
	cmd.Env = append(os.Environ(), child+"=1", "TMPDIR="+tmp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "ready\n" {
		t.Errorf("the child said %q (%v)", line, err)
	}
	if n := running(tmp); n < 3 {
		t.Errorf("%d processes run, want 3 or more", n)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	until(func() bool { return running(tmp) == 0 })
}
