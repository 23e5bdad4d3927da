// Package postgrestest starts PostgreSQL servers for tests: real ones, in a temporary folder,
// reached through a Unix socket in it and nowhere else. They end with the test, or with the test
// binary if that is killed.
//
//	func TestMain(m *testing.M) { os.Exit(postgrestest.Run(m)) }
//
//	func TestDepot(t *testing.T) {
//		url := postgrestest.Shared(t).Database(t)
//		...
//	}
//
// A test that kills or stops its server starts one of its own with [Start]. For failovers there is
// [Server.Standby], for what lies between a program and its server [Server.Proxy] and
// [Server.Bouncer].
//
// The variable PGTEST says what becomes of a test where PostgreSQL, or PgBouncer, is not installed:
//
//	require   it fails; the default where CI is "true"
//	skip      it is skipped, naming the Debian package; the default elsewhere
//	off       it is skipped even where PostgreSQL is there
//
// The newest version below /usr/lib/postgresql is used, else what is in the path. PostgreSQL
// refuses to run as root; a test that does has it run as the user postgres, or nobody. Only Unix
// is supported; elsewhere tests are skipped.
package postgrestest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// process is what the tests of one binary share. It is set up by Run.
var process struct {
	running bool

	serving sync.Mutex
	shared  *Server // once somebody asked for it

	copying sync.Mutex
	dir     string // has a fresh cluster to copy, once there is one
}

// Run runs the tests, and then stops the shared server and deletes its files. It returns the exit
// code, for TestMain.
func Run(m *testing.M) int {
	process.running = true
	defer func() {
		if process.shared != nil {
			process.shared.end()
		}
		if process.dir != "" {
			os.RemoveAll(process.dir)
		}
	}()
	return m.Run()
}

// Shared returns a server for all tests of this binary, which none may stop, or one for this test
// only where TestMain does not call [Run].
func Shared(t testing.TB) *Server {
	t.Helper()
	if !process.running {
		return Start(t)
	}
	process.serving.Lock()
	defer process.serving.Unlock()
	if process.shared == nil {
		process.shared = start(t)
	}
	return process.shared
}

// missing ends the test of a program that is not installed.
func missing(t testing.TB, name, debian string) {
	t.Helper()
	if mode := os.Getenv("PGTEST"); mode == "require" || mode == "" && os.Getenv("CI") == "true" {
		t.Fatalf("postgrestest: %s is required and not installed (Debian package %s)", name, debian)
	}
	t.Skipf("postgrestest: %s is not installed (Debian package %s)", name, debian)
}

// bin returns the folder of PostgreSQL's programs, or ends the test.
func bin(t testing.TB) string {
	t.Helper()
	switch mode := os.Getenv("PGTEST"); mode {
	case "", "require", "skip":
	case "off":
		t.Skip("postgrestest: PGTEST is off")
	default:
		t.Fatalf("postgrestest: PGTEST is %q, want require, skip or off", mode)
	}
	if !unix {
		t.Skip("postgrestest: servers run on Unix only")
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	if path, err := exec.LookPath("postgres"); err == nil {
		found = append(found, path)
	}
	for _, path := range found {
		if _, err := os.Stat(filepath.Join(filepath.Dir(path), "initdb")); err == nil {
			return filepath.Dir(path)
		}
	}
	missing(t, "PostgreSQL", "postgresql")
	return ""
}

// folder makes a folder that belongs to the server's user. Its name is short: the path of a socket
// may have no more than about 100 bytes.
func folder(t testing.TB) string {
	t.Helper()
	parent := os.TempDir()
	if len(parent) > 60 {
		parent = "/tmp"
	}
	dir, err := os.MkdirTemp(parent, "pg")
	if err == nil {
		err = own(dir)
	}
	if err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
	return dir
}

// write writes a file that belongs to the server's user.
func write(t testing.TB, name, content string) {
	t.Helper()
	err := os.WriteFile(name, []byte(content), 0o600)
	if err == nil {
		err = own(name)
	}
	if err != nil {
		t.Fatalf("postgrestest: %v", err)
	}
}

// cluster puts a fresh cluster into dir/data.
func cluster(t testing.TB, bin, dir string) {
	t.Helper()
	process.copying.Lock()
	defer process.copying.Unlock()
	from := process.dir
	if from == "" {
		from = dir
		if process.running {
			from = folder(t)
		}
		command(t, filepath.Join(bin, "initdb"), "--pgdata="+filepath.Join(from, "data"), "--username=postgres", "--auth=trust",
			"--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "--no-instructions")
		if from == dir {
			return
		}
		process.dir = from
	}
	command(t, "cp", "-R", filepath.Join(from, "data"), filepath.Join(dir, "data"))
}

// command runs a program as the server's user.
func command(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	unprivileged(cmd)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("postgrestest: %s %s: %v\n%s", filepath.Base(name), strings.Join(args, " "), err, out)
	}
}

// URL returns where a database is that one of several servers has, for their superuser: through
// their sockets, in this order.
func URL(database string, servers ...*Server) string {
	var dirs, ports []string
	for _, s := range servers {
		dirs, ports = append(dirs, s.dir), append(ports, fmt.Sprint(port))
	}
	return fmt.Sprintf("postgres://postgres@/%s?host=%s&port=%s&sslmode=disable", database, strings.Join(dirs, ","), strings.Join(ports, ","))
}

// port is only a part of the socket's name.
const port = 5432
