package postgrestest_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
)

func TestMain(m *testing.M) { os.Exit(postgrestest.Run(m)) }

// ask asks a server a question within a second.
func ask(t *testing.T, url string) error {
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer c.Close(ctx)
	_, err = c.Exec(ctx, "SELECT 1")
	return err
}

func TestLives(t *testing.T) {
	s := postgrestest.Start(t)
	url := s.Database(t)
	for _, step := range []struct {
		name string
		do   func(testing.TB)
		up   bool
	}{
		{"started", func(testing.TB) {}, true},
		{"paused", s.Pause, false},
		{"resumed", s.Resume, true},
		{"stopped", s.Stop, false},
		{"started again", s.Start, true},
		{"killed", s.Kill, false},
		{"started after that", s.Start, true},
		{"stopped while it was paused", func(t testing.TB) { s.Pause(t); s.Stop(t) }, false},
		{"and started", s.Start, true},
	} {
		step.do(t)
		if err := ask(t, url); (err == nil) != step.up {
			t.Fatalf("%s: %v", step.name, err)
		}
	}
}

// count returns how many rows a table has.
func count(t *testing.T, url, table string) (n int) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if err := c.QueryRow(t.Context(), "SELECT count(*) FROM "+table).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestStandby has a standby take over, and the server that it followed follow it.
func TestStandby(t *testing.T) {
	first := postgrestest.Start(t, postgrestest.Primary, postgrestest.Synchronous)
	second := first.Standby(t, postgrestest.Synchronous)
	insert := `INSERT INTO t VALUES (1)`
	first.Exec(t, "postgres", `SET synchronous_commit = remote_apply`, `CREATE TABLE t (n int)`, insert)
	if n := count(t, second.URL("postgres"), "t"); n != 1 {
		t.Fatalf("the standby has %d rows", n)
	}
	first.Stop(t)
	second.Promote(t)
	second.Exec(t, "postgres", insert)
	first.Follow(t, second)
	second.Exec(t, "postgres", `SET synchronous_commit = remote_apply`, insert)
	if n := count(t, first.URL("postgres"), "t"); n != 3 {
		t.Errorf("the server that follows has %d rows", n)
	}
	second.Kill(t)
	if n := count(t, postgrestest.URL("postgres", second, first), "t"); n != 3 {
		t.Errorf("the one that is left has %d rows", n)
	}
}

func TestBouncer(t *testing.T) {
	s := postgrestest.Shared(t)
	b := s.Bouncer(t, "session")
	url := b.URL(s.Database(t))
	if err := ask(t, url); err != nil {
		t.Fatal(err)
	}
	b.Kill(t)
	if err := ask(t, url); err == nil {
		t.Error("killed, and answers")
	}
	b.Start(t)
	if err := ask(t, url); err != nil {
		t.Error(err)
	}
}

// TestKeep starts a server where another one was before.
func TestKeep(t *testing.T) {
	dir, err := os.MkdirTemp("", "keep") // of t, the server's user would see nothing
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	dir = filepath.Join(dir, "pg")
	if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for i, statement := range []string{`CREATE TABLE kept (n int)`, `INSERT INTO kept VALUES (1)`} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			s := postgrestest.Start(t, postgrestest.Keep(dir))
			s.Exec(t, "postgres", statement)
			if s.Dir() != dir {
				t.Errorf("it is in %s", s.Dir())
			}
		})
		if _, err := os.Stat(filepath.Join(dir, "data", "postmaster.pid")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it still runs: %v", err)
		}
	}
}

func TestProxy(t *testing.T) {
	s := postgrestest.Shared(t)
	p := s.Proxy(t)
	url := p.URL(s.Database(t))
	if err := ask(t, url); err != nil {
		t.Fatal(err)
	}
	for _, cut := range postgrestest.Cuts {
		p.Arm(cut, 0)
		if err := ask(t, url); err == nil {
			t.Errorf("%v: nobody has noticed", cut)
		}
		if !p.Disarm() {
			t.Errorf("%v: no connection was lost", cut)
		}
		if err := ask(t, url); err != nil {
			t.Errorf("%v: the next: %v", cut, err)
		}
	}
}

// TestNothingLeft kills a test binary: its server ends.
func TestNothingLeft(t *testing.T) {
	if os.Getenv("POSTGRESTEST_VICTIM") != "" {
		fmt.Println("server", postgrestest.Start(t).Dir())
		select {}
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux can see to that")
	}
	postgrestest.Shared(t) // or skip
	tmp, err := os.MkdirTemp("", "pg")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil { // the server may run as another user
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestNothingLeft$")
	cmd.Env = append(os.Environ(), "POSTGRESTEST_VICTIM=1", "TMPDIR="+tmp)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	var dir string
	for lines := bufio.NewScanner(out); dir == "" && lines.Scan(); {
		fmt.Sscanf(lines.Text(), "server %s", &dir)
	}
	if dir == "" {
		t.Fatal("the victim has no server")
	}
	content, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(content), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait()
	for begun := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if _, err := os.Stat(fmt.Sprint("/proc/", pid)); errors.Is(err, os.ErrNotExist) {
			return
		}
		if time.Since(begun) > 5*time.Second {
			t.Fatal("the server lives on")
		}
	}
}
