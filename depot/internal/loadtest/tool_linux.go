package loadtest

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/scep/sceptest"
)

// MaxMemory is how much resident memory a process may have.
const MaxMemory = 200 << 20

// Tool is examples/depot, with a CA in its folder.
type Tool struct{ dir, path, env string }

// NewTool builds the program. where is the database, which commands name as env:DB.
func NewTool(t *testing.T, where string) *Tool {
	t.Helper()
	dir := t.TempDir()
	tool := &Tool{dir: dir, path: filepath.Join(dir, "depot"), env: "DB=" + where}
	if out, err := exec.Command("go", "build", "-o", tool.path, "github.com/scepkit/scepkit/examples/depot").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ca := sceptest.NewCA(t)
	key, err := x509.MarshalPKCS8PrivateKey(ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca.key": {Type: "PRIVATE KEY", Bytes: key}, "ca.pem": {Type: "CERTIFICATE", Bytes: ca.Certificate().Raw},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return tool
}

// Run runs a command, in which DIR is the folder, and holds it to MaxMemory. It returns how many
// lines it wrote to the standard output.
func (tool *Tool) Run(t *testing.T, args ...string) (lines int) {
	t.Helper()
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "DIR", tool.dir)
	}
	cmd := exec.Command(tool.path, args...)
	cmd.Env = append(os.Environ(), tool.env)
	var out counter
	var progress bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &progress
	begun := time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- cmd.Wait() }()
	peak := 0
	for running := true; running; {
		select {
		case err := <-ended:
			if running = false; err != nil {
				t.Errorf("depot %s: %v", strings.Join(args, " "), err)
			}
		case <-time.After(10 * time.Millisecond):
			peak = max(peak, highWater(cmd.Process.Pid))
		}
	}
	t.Logf("depot %s: %v, %d MiB at most, %d lines, the last %.100q", strings.Join(args, " "), time.Since(begun).Round(time.Millisecond), peak>>20, out.lines, bytes.TrimSpace(out.last))
	if shown := strings.Split(strings.TrimSpace(progress.String()), "\n"); shown[0] != "" {
		t.Logf("  and %d lines of progress: %s … %s", len(shown), shown[0], shown[len(shown)-1])
	}
	if peak > MaxMemory {
		t.Errorf("depot %s took %d MiB, want at most %d", args[0], peak>>20, MaxMemory>>20)
	}
	return out.lines
}

// highWater returns the most memory that a process has had.
func highWater(pid int) (size int) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0 // has ended
	}
	if _, line, found := strings.Cut(string(status), "VmHWM:"); found {
		fmt.Sscan(line, &size)
	}
	return size << 10
}

// counter counts lines, and keeps the end of them.
type counter struct {
	lines int
	last  []byte
}

func (c *counter) Write(p []byte) (int, error) {
	c.lines += bytes.Count(p, []byte("\n"))
	c.last = append(c.last[:0], p[max(0, len(p)-200):]...)
	if i := bytes.LastIndexByte(bytes.TrimSpace(c.last), '\n'); i >= 0 {
		c.last = c.last[i+1:]
	}
	return len(p), nil
}

var _ io.Writer = (*counter)(nil)

// DropCaches has the system forget what it has of the files in a folder, as after a restart.
func DropCaches(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if err := exec.Command("sync", path).Run(); err != nil { // what is not on the disk is kept
			return err
		}
		return exec.Command("dd", "if="+path, "iflag=nocache", "count=0", "status=none").Run()
	})
	if err != nil {
		t.Fatal(err)
	}
}
