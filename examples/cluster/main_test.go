package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/examples/internal/exampletest"
)

func TestMain(m *testing.M) { exampletest.Main(m, main) }

// need ends a test where PostgreSQL is not installed, by the same rules as postgrestest.
func need(t *testing.T) {
	t.Helper()
	mode := os.Getenv("PGTEST")
	switch mode {
	case "", "require", "skip":
	case "off":
		t.Skip("PGTEST is off")
	default:
		t.Fatalf("PGTEST is %q, want require, skip or off", mode)
	}
	if slayOrder == "" {
		t.Skip("PostgreSQL is started on Unix only")
	}
	if _, err := programs(debian); err != nil {
		if mode == "require" || mode == "" && os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
}

// A program is a cluster that runs.
type program struct {
	*exampletest.Server
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	out    strings.Builder // all of it
	stderr strings.Builder
}

var printed = regexp.MustCompile(`^  (\S.*?)  +(\S.*)$`)

// start starts a cluster and waits until it is ready.
func start(t *testing.T, args ...string) *program {
	t.Helper()
	need(t)
	parent := os.TempDir()
	if len(parent) > 50 {
		parent = "/tmp" // the path of a socket is short
	}
	dir, err := os.MkdirTemp(parent, "cluster")
	if err == nil {
		err = os.Chmod(dir, 0o711) // the database may run as another user
	}
	if err != nil {
		t.Fatal(err)
	}
	p := &program{cmd: exampletest.Command(nil, append([]string{"-addr", "127.0.0.1:0", "-data", dir}, args...)...)}
	p.Server = &exampletest.Server{Dir: dir, Printed: map[string]string{}}
	p.cmd.Stderr = &p.stderr
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.gone(t)
		if t.Failed() {
			t.Logf("it printed:\n%s%s", &p.out, &p.stderr)
			logs, _ := filepath.Glob(filepath.Join(dir, "*.log"))
			for _, name := range logs {
				text, _ := os.ReadFile(name)
				t.Logf("%s ends with:\n%s", name, text[max(0, len(text)-4000):])
			}
		}
		os.RemoveAll(dir)
	})
	p.lines = bufio.NewScanner(stdout)
	for p.Printed["data"] == "" && p.next() {
		if m := printed.FindStringSubmatch(p.lines.Text()); m != nil {
			p.Printed[m[1]] = m[2]
		}
	}
	if p.Printed["data"] == "" {
		t.Fatal("it did not start")
	}
	return p
}

// next reads one more line of what the program prints.
func (p *program) next() bool {
	more := p.lines.Scan()
	if more {
		fmt.Fprintln(&p.out, p.lines.Text())
	}
	return more
}

// interrupt ends the program as ^C does, and returns what the report says, by name.
func (p *program) interrupt(t *testing.T) map[string]string {
	t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	report := map[string]string{}
	for p.next() {
		if m := printed.FindStringSubmatch(p.lines.Text()); m != nil {
			report[m[1]] = m[2]
		}
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
	if !strings.Contains(p.out.String(), "\nNothing was lost.\n") {
		t.Error("the report does not say that nothing was lost")
	}
	if left := p.left(); len(left) > 0 {
		t.Errorf("there are still %q", left)
	}
	for _, name := range []string{"replica-1.log", "postgres.log"} {
		text, err := os.ReadFile(filepath.Join(p.Dir, name))
		if err != nil {
			t.Error(err)
		}
		if strings.Contains(string(text), p.Printed["challenge"]) {
			t.Errorf("the challenge is in %s", name)
		}
	}
	return report
}

// left returns the processes that the program started and that still run. All have its folder in
// their arguments, or work in it.
func (p *program) left() []string {
	var all []string
	if _, err := os.Stat("/proc/self/cmdline"); err != nil {
		out, _ := exec.Command("ps", "-A", "-o", "command=").Output()
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, p.Dir) {
				all = append(all, line)
			}
		}
		return all
	}
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range found {
		line, _ := os.ReadFile(name)
		at, _ := os.Readlink(filepath.Join(filepath.Dir(name), "cwd"))
		if strings.Contains(string(line), p.Dir) || strings.HasPrefix(at, p.Dir) {
			all = append(all, string(line))
		}
	}
	return all
}

// gone waits until nothing is left of a program that was killed.
func (p *program) gone(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); len(p.left()) > 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("there are still %q", p.left())
			return
		}
	}
}

// TestKills has devices at work until replicas and the database have been killed, and more has
// been enrolled and renewed after that. Then it ends the program, and reads the report.
func TestKills(t *testing.T) {
	p := start(t, "-clients", "4", "-kill-every", "1s", "-busy", "30", "-for", "10m")
	if runtime.GOOS == "linux" && len(p.left()) < 5 {
		t.Fatalf("only %q run: this test would not see what is left of a program", p.left())
	}
	line := regexp.MustCompile(`enrolled (\d+) +renewed (\d+) +polls (\d+) .* killed (\d+) +database \w+ +killed (\d+)`)
	var enrolled, renewed int // when the last that was needed had been killed
	for p.next() {
		m := line.FindStringSubmatch(p.lines.Text())
		if m == nil {
			continue
		}
		var n [5]int
		for i := range n {
			n[i], _ = strconv.Atoi(m[i+1])
		}
		if n[3] < 2 || n[4] < 1 || n[2] < 1 {
			continue
		}
		if enrolled == 0 {
			enrolled, renewed = n[0], n[1]
		}
		if n[0] > enrolled && n[1] > renewed {
			break
		}
	}
	report := p.interrupt(t)
	for _, name := range []string{"enrolments", "renewals", "polls", "replicas killed", "database killed", "asked for once more, and got again"} {
		if n, err := strconv.Atoi(report[name]); err != nil || n < 1 {
			t.Errorf("the report says %q of %s", report[name], name)
		}
	}
	for _, l := range (&report0).losses() {
		if report[l.name] != "0" {
			t.Errorf("the report says %q of %s", report[l.name], l.name)
		}
	}
}

// report0 is a report in which nothing was lost.
var report0 = report{lost: &losses{}}

// TestOutsiders has others enrol and renew, and nothing is killed: the report tells the costs.
func TestOutsiders(t *testing.T) {
	p := start(t, "-clients", "1", "-kill-every", "0", "-busy", "0", "-for", "0", "-replicas", "2", "-ca-key", "rsa2048")
	p.Printed["state"] = strings.TrimSuffix(p.Printed["URL"], "/scep") + "/readyz"
	if page := p.Ready(t, 200); page != "ready" {
		t.Errorf("/readyz says %q", page)
	}
	p.Enroll(t, exampletest.BuildEnroll(t))
	p.StrongSwan(t)
	report := p.interrupt(t)
	for name, unit := range map[string]string{
		"processor time of the replicas": " ms", "processor time of the database": " ms", "write-ahead log": " B", "room in the database": " B  with indexes",
	} {
		text, ok := strings.CutSuffix(report[name], unit)
		if f, err := strconv.ParseFloat(text, 64); !ok || err != nil || f <= 0 {
			t.Errorf("the report says %q of %s", report[name], name)
		}
	}
	for _, name := range []string{"replicas killed", "database killed", "asked for once more, and got again", "polls"} {
		if report[name] == "" || !strings.HasPrefix(report[name]+" ", "0 ") {
			t.Errorf("the report says %q of %s", report[name], name)
		}
	}
}

// TestParentKilled kills the program itself: nothing that it started stays.
func TestParentKilled(t *testing.T) {
	p := start(t, "-clients", "1", "-for", "0")
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.cmd.Wait()
	p.gone(t)
}

// TestTemporaryFolder has the program keep things where it does without -data: however it ends,
// nothing of them stays.
func TestTemporaryFolder(t *testing.T) {
	t.Setenv("TMPDIR", "/tmp") // the path of a socket is short
	for name, end := range map[string]func(*testing.T, *program){
		"killed": func(t *testing.T, p *program) {
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			p.cmd.Wait()
		},
		"interrupted": func(t *testing.T, p *program) {
			if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			for p.next() {
			}
			if err := p.cmd.Wait(); err != nil {
				t.Error(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := start(t, "-clients", "1", "-for", "0", "-kill-every", "0", "-replicas", "1", "-data", "")
			p.Dir = p.Printed["data"]
			for p.next() && !strings.Contains(p.lines.Text(), "enrolled") {
			}
			if _, err := os.Stat(filepath.Join(p.Dir, "postgres", "data")); err != nil {
				t.Fatal(err)
			}
			end(t, p)
			p.gone(t)
			if _, err := os.Stat(p.Dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v; want it deleted", p.Dir, err)
				os.RemoveAll(p.Dir)
			}
		})
	}
}

// TestDatabaseURL uses a database of somebody else's, which is not killed. Then somebody deletes
// records there, and the program tells.
func TestDatabaseURL(t *testing.T) {
	of := start(t, "-clients", "0", "-kill-every", "0", "-for", "0", "-replicas", "1")
	url := (&server{dir: filepath.Join(of.Dir, "postgres")}).url()
	p := start(t, "-clients", "2", "-kill-every", "500ms", "-for", "3s", "-replicas", "2", "-database", url)
	for p.next() {
	}
	if err := p.cmd.Wait(); err != nil {
		t.Errorf("the program ended with %v", err)
	}
	if out := p.out.String(); !strings.Contains(out, "Nothing was lost.") || !regexp.MustCompile(`(?m)^  database killed +0$`).MatchString(out) {
		t.Error("the report is another")
	}

	p = start(t, "-clients", "1", "-kill-every", "0", "-for", "10m", "-replicas", "1", "-database", url)
	enrolled := regexp.MustCompile(`enrolled [1-9]`)
	for p.next() && !enrolled.MatchString(p.lines.Text()) {
	}
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(context.Background())
	if tag, err := c.Exec(t.Context(), `DELETE FROM `+schema+`.record WHERE state = 3`); err != nil || tag.RowsAffected() == 0 {
		t.Fatal(tag, err)
	}
	p.cmd.Process.Signal(syscall.SIGINT)
	for p.next() {
	}
	p.cmd.Wait()
	if status := p.cmd.ProcessState.ExitCode(); status != 1 {
		t.Errorf("exit status %d", status)
	}
	if out := p.out.String(); !strings.Contains(out, "SOMETHING WAS LOST") || !strings.Contains(out, "  certificates delivered, not in the depot: certificate with serial number ") {
		t.Error("the report does not tell")
	}
	of.interrupt(t)
}

// TestCannotStart has what must be refused, with a text that says what to do.
func TestCannotStart(t *testing.T) {
	dir := t.TempDir()
	for _, tt := range []struct {
		name string
		args []string
		want string
	}{
		{"kind of key", []string{"-ca-key", "dsa"}, "use rsa2048"},
		{"no replicas", []string{"-replicas", "0"}, "-replicas is 1 or more"},
		{"argument", []string{"serve"}, `no command "serve"`},
		{"folder with a long name", []string{"-data", filepath.Join(dir, strings.Repeat("long", 30))}, "shorter -data"},
		{"no database", []string{"-data", filepath.Join(dir, "d"), "-database", "postgres://nobody@127.0.0.1:1/none"}, "127.0.0.1:1"},
		{"capacity", []string{"capacity", "-devices", "-1"}, "-devices"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "folder with a long name" {
				need(t)
			}
			out, err := exampletest.Command(nil, tt.args...).CombinedOutput()
			if err == nil || !strings.Contains(string(out), tt.want) {
				t.Errorf("%v: %s; want an error with %q", err, out, tt.want)
			}
		})
	}
	t.Run("address in use", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out, err := exampletest.Command(nil, "-addr", l.Addr().String()).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "give another -addr") || strings.Contains(string(out), "left in") {
			t.Errorf("%v: %s; want an error that names -addr, and nothing left behind", err, out)
		}
	})
	t.Run("folder in use", func(t *testing.T) {
		need(t)
		dir, err := os.MkdirTemp("", "c") // the path of a socket is short
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.Mkdir(filepath.Join(dir, "postgres"), 0o700); err != nil {
			t.Fatal(err)
		}
		l, err := net.Listen("unix", filepath.Join(dir, "postgres", ".s.PGSQL.5432"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out, err := exampletest.Command(nil, "-addr", "127.0.0.1:0", "-data", dir).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "the same -data is in use") {
			t.Errorf("%v: %s; want an error that names -data", err, out)
		}
	})
	t.Setenv("PATH", dir)
	if _, err := programs(filepath.Join(dir, "*")); err == nil || !strings.Contains(err.Error(), "apt-get install postgresql") {
		t.Errorf("without PostgreSQL: %v", err)
	}
}
