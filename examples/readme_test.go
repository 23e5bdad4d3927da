//go:build unix

package examples_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var blocks = regexp.MustCompile("(?ms)^```(sh|go)\n(.*?)^```$")

// TestREADME does what the README tells a newcomer to do, in a copy of the repository, with
// another port than 8080 if that is taken.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var shell, code []string
	var hsm string
	for _, m := range blocks.FindAllStringSubmatch(string(readme), -1) {
		switch {
		case m[1] == "go":
			code = append(code, m[2])
		case strings.Contains(m[2], "softhsm2-util"):
			hsm = m[2]
		default:
			shell = append(shell, m[2])
		}
	}
	if len(shell) != 3 || hsm == "" || len(code) != 3 {
		t.Fatalf("README has %d blocks of shell, %d bytes for an HSM, and %d blocks of Go; this test knows 3, some and 3", len(shell), len(hsm), len(code))
	}
	serve, enroll, test := shell[0], shell[1], shell[2]

	ci, err := os.ReadFile("../.ci/run")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(ci), strings.TrimSpace(test)) {
		t.Errorf(".ci/run does not run the README's test command, %q", test)
	}
	if _, err := exec.LookPath("openssl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}

	dir := clone(t)
	for name, first := range map[string]string{"file": "", "first": code[1], "second": code[2]} {
		t.Run("main "+name, func(t *testing.T) { vet(t, filepath.Join(dir, "readme-"+name), code[0], first) })
	}
	t.Run("quick start", func(t *testing.T) { try(t, dir, serve, enroll, "device-1.pem: OK") })
	t.Run("HSM", func(t *testing.T) {
		if _, err := exec.LookPath("softhsm2-util"); err != nil {
			if os.Getenv("CI") == "true" || os.Getenv("HSMTEST") == "require" {
				t.Fatal(err)
			}
			t.Skipf("%v (Debian package softhsm2)", err)
		}
		enroll := strings.NewReplacer("scep-data", "hsm-data", "device-1", "device-2").Replace(enroll)
		try(t, dir, hsm, enroll, "device-2.pem: OK")
	})
}

// vet checks the program in the README, with its first line replaced by first if there is one.
func vet(t *testing.T, dir, program, first string) {
	t.Helper()
	imports := []string{"log", "net/http", "os"}
	if first != "" {
		const line = `ca, err := file.Open("ca.pem", "ca.key")` + "\n"
		if !strings.Contains(program, line) {
			t.Fatalf("the program in the README does not have %q", line)
		}
		program = strings.Replace(program, line, "ctx := context.Background()\n"+first, 1)
		imports = append(imports, "context")
	}
	for _, p := range []string{"backend", "backend/file", "backend/pkcs11", "backend/tpm", "challenge", "depot/sqlite", "scep"} {
		if regexp.MustCompile(`\b` + filepath.Base(p) + `\.[A-Z]`).MatchString(program) {
			imports = append(imports, "github.com/scepkit/scepkit/"+p)
		}
	}
	source := "package main\n\n"
	for _, p := range imports {
		source += fmt.Sprintf("import %q\n", p)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.go"), []byte(source+program), 0o600); err != nil {
		t.Fatal(err)
	}
	sh(t, dir, "go vet .")
}

// try serves and enrols, by scripts from the README.
func try(t *testing.T, dir, serve, enroll, want string) {
	t.Helper()
	addr := "127.0.0.1:8080"
	if l, err := net.Listen("tcp", addr); err == nil {
		l.Close()
	} else {
		if l, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		enroll = strings.ReplaceAll(enroll, addr, l.Addr().String())
		addr = l.Addr().String()
		serve = strings.TrimSpace(serve) + " -addr " + addr
		l.Close()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cmd := command(ctx, dir, serve)
	log, err := os.Create(filepath.Join(dir, "server.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }()
	defer func() { cancel(); <-ended }()
	for {
		if c, err := net.Dial("tcp", addr); err == nil {
			c.Close()
			break
		}
		select {
		case <-ended:
			text, _ := os.ReadFile(log.Name())
			t.Fatalf("the server ended:\n%s", text)
		case <-time.After(50 * time.Millisecond):
		}
	}
	if out := sh(t, dir, enroll); !strings.Contains(out, want) {
		t.Errorf("openssl said:\n%s", out)
	}
}

// clone copies what git tracks, or would track, to a temporary folder.
func clone(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	list := sh(t, "..", "git ls-files --cached --others --exclude-standard")
	files := strings.Fields(list)
	if len(files) == 0 {
		t.Fatal("git lists no files")
	}
	for _, name := range files {
		if strings.HasPrefix(name, "hsm-data/") || strings.HasPrefix(name, "tpm-data/") {
			continue // of who tried the README himself
		}
		content, err := os.ReadFile(filepath.Join("..", name))
		if os.IsNotExist(err) {
			continue // deleted, and not yet committed
		}
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func sh(t *testing.T, dir, script string) string {
	t.Helper()
	out, err := command(context.Background(), dir, "set -e\n"+script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}
