// Package exampletest runs the example programs as people do, with key hardware made of software.
package exampletest

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Variable makes a test binary the program itself; see [Main].
const Variable = "SCEPKIT_EXAMPLE"

// Main runs main if the test binary was started as the program, and the tests otherwise.
func Main(m *testing.M, main func()) {
	if os.Getenv(Variable) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Need returns the path of a tool. Without it the test is skipped, or fails where CI is true or
// HSMTEST is require. debian names the package that has it.
func Need(t *testing.T, tool, debian string) string {
	t.Helper()
	path, err := exec.LookPath(tool)
	if err == nil {
		return path
	}
	if os.Getenv("CI") == "true" || os.Getenv("HSMTEST") == "require" {
		t.Fatalf("%s is not installed (Debian package %s)", tool, debian)
	}
	t.Skipf("%s is not installed (Debian package %s)", tool, debian)
	return ""
}

// Command prepares the program under test.
func Command(env []string, args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	// With -race, a program would sleep for a second at its end.
	cmd.Env = append(append(os.Environ(), Variable+"=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE")), env...)
	return cmd
}

// Run runs a tool in dir to its end, which must be a good one, and returns what it printed.
func Run(t *testing.T, env []string, dir, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return string(out)
}

// Write writes a file.
func Write(t *testing.T, dir, name, content string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// A Server is an example server that runs. Its log must not have the challenge in it.
type Server struct {
	Dir     string
	Printed map[string]string // what it greeted with, by name, as "URL"

	Stop func(os.Signal) error
}

var printed = regexp.MustCompile(`^  (\S.*?)  +(\S.*)$`)

// Start starts the program, keeping things in dir. secrets must not be in its log.
func Start(t *testing.T, env []string, dir string, secrets []string, args ...string) *Server {
	t.Helper()
	cmd := Command(env, append([]string{"-addr", "127.0.0.1:0", "-dir", dir}, args...)...)
	var log strings.Builder
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &Server{Dir: dir, Printed: map[string]string{}}
	drained := make(chan struct{})
	var once sync.Once
	var ended error
	s.Stop = func(sig os.Signal) error {
		once.Do(func() { cmd.Process.Signal(sig); <-drained; ended = cmd.Wait() })
		return ended
	}
	t.Cleanup(func() {
		s.Stop(syscall.SIGTERM)
		if t.Failed() {
			t.Logf("log of the server:\n%s", &log)
		}
		for _, secret := range append(secrets, s.Printed["challenge"]) {
			if secret != "" && strings.Contains(log.String(), secret) {
				t.Errorf("the log has the secret %q in it", secret)
			}
		}
	})
	lines := bufio.NewScanner(stdout)
	for s.Printed["data"] == "" && lines.Scan() {
		if m := printed.FindStringSubmatch(lines.Text()); m != nil {
			s.Printed[m[1]] = m[2]
		}
	}
	go func() { // keep the pipe empty until the process ends
		defer close(drained)
		for lines.Scan() {
		}
	}()
	if s.Printed["data"] == "" {
		s.Stop(os.Kill)
		t.Fatalf("the server did not start:\n%s", &log)
	}
	return s
}
