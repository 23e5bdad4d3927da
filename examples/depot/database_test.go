package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/examples/internal/exampletest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// variety returns records of all kinds, so many of them.
func variety(t *testing.T, n int) (all []*scep.Record) {
	ca := sceptest.NewCA(t)
	at := time.Date(2031, 2, 3, 4, 5, 6, 789000, time.UTC)
	for i := range n {
		rec := &scep.Record{
			State: scep.Pending + scep.State(i%5), Profile: []string{"", "laptops"}[i%2], TransactionID: "transaction\x00\xff", RemoteAddr: "192.0.2.1:1",
			Issuer: ca.Certificate().RawSubject, Serial: big.NewInt(int64(i + 1)), CSR: []byte{1, byte(i)}, Created: at, Changed: at.Add(time.Second),
			DecidedBy: "alice", Remark: "a \\ remark",
		}
		switch rec.State {
		case scep.Issued, scep.Revoked:
			rec.Certificate, rec.NotAfter = ca.Certificate().Raw, at.AddDate(1, 0, 0)
		case scep.Denied:
			rec.FailInfo, rec.Reason = scep.BadRequest, "no"
		}
		if rec.State == scep.Revoked {
			rec.Revoked, rec.RevocationReason = at, i%3
		}
		all = append(all, rec)
	}
	return all
}

// TestNoTables reads where there are no tables, which makes none, and where they are in a schema of
// another name.
func TestNoTables(t *testing.T) {
	dir := t.TempDir()
	create(t, filepath.Join(dir, "scep.db"), variety(t, 10)...)
	if _, _, err := depot(t, dir, "export -from DIR/scep.db -out DIR/records"); err != nil {
		t.Fatal(err)
	}
	url := postgrestest.Shared(t).Database(t)
	t.Setenv("DEPOT_TEST", url)
	want(t, dir, "import -into env:DEPOT_TEST -schema devices DIR/records", "imported: 10, there already: 0")
	for _, args := range []string{"list -db env:DEPOT_TEST", "export -from env:DEPOT_TEST -out DIR/none", "prune -db env:DEPOT_TEST -denied-for 1d"} {
		for range 2 { // if the first made tables, the second would read them
			if _, stderr, err := depot(t, dir, args); err == nil || !strings.Contains(err.Error(), "-schema") {
				t.Errorf("%s: %v\n%s\nwant an error that names -schema", args, err, stderr)
			}
		}
	}
	want(t, dir, "list -db env:DEPOT_TEST -schema devices", "denied")
	want(t, dir, "import -into env:DEPOT_TEST DIR/records", "imported: 10, there already: 0")
}

// TestOutgrown moves a file's records to PostgreSQL, and back.
func TestOutgrown(t *testing.T) {
	const n = 1500
	dir := t.TempDir()
	create(t, filepath.Join(dir, "scep.db"), variety(t, n)...)
	url := postgrestest.Shared(t).Database(t)
	t.Setenv("DEPOT_TEST", url)
	want(t, dir, "export -from DIR/scep.db -out DIR/records", fmt.Sprintf("exported: %d in ", n))
	want(t, dir, "import -into env:DEPOT_TEST DIR/records", fmt.Sprintf("imported: %d, there already: 0\n", n))
	want(t, dir, "import -into "+url+" DIR/records", fmt.Sprintf("imported: 0, there already: %d\n", n))
	want(t, dir, "export -from env:DEPOT_TEST -out DIR/again", fmt.Sprintf("exported: %d in ", n))
	first, err := os.ReadFile(filepath.Join(dir, "records"))
	if err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(filepath.Join(dir, "again")); err != nil || !sameLines(first, second) {
		t.Errorf("what came is not what went: %v", err)
	}
	// From one to the other without a file.
	out, _, err := depot(t, dir, "export -from env:DEPOT_TEST -out -")
	if err != nil || !sameLines([]byte(out), first) {
		t.Errorf("to the standard output: %d bytes, want %d; %v", len(out), len(first), err)
	}
	var stdout, stderr bytes.Buffer
	if err := run(t.Context(), []string{"import", "-into", filepath.Join(dir, "back.db"), "-"}, strings.NewReader(out), &stdout, &stderr); err != nil {
		t.Errorf("from the standard input: %v\n%s", err, &stderr)
	}
	for _, db := range []string{"DIR/back.db", "env:DEPOT_TEST"} {
		for _, args := range []string{" -state denied", " -profile laptops", ""} {
			here, _, err := depot(t, dir, "list -db DIR/scep.db"+args)
			there, _, err2 := depot(t, dir, "list -db "+db+args)
			if err != nil || err2 != nil || here != there || here == "" {
				t.Errorf("%s%s lists %d bytes, and the first %d: %v, %v", db, args, len(there), len(here), err2, err)
			}
		}
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	all := variety(t, 10)
	all[0].DecidedBy = "bob\t\x1b[2J"
	create(t, filepath.Join(dir, "scep.db"), all...)
	out, _, err := depot(t, dir, "list -db DIR/scep.db")
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	if err != nil || len(lines) != 10 {
		t.Fatalf("%v: %q", err, lines)
	}
	if want := string(all[0].ID) + "\tpending\t-\t1\t2031-02-03T04:05:06Z\t-\t\"bob\\t\\x1b[2J\""; lines[0] != want {
		t.Errorf("%q, want %q", lines[0], want)
	}
	if want := string(all[2].ID) + "\tissued\t" + sceptest.NewCA(t).Certificate().Subject.String() + "\t3\t2031-02-03T04:05:06Z\t2032-02-03T04:05:06Z\talice"; lines[2] != want {
		t.Errorf("%q, want %q", lines[2], want)
	}
	for args, want := range map[string]int{"-state pending": 2, "-profile laptops": 5, "-profile laptops -state revoked": 1, "-profile other": 0} {
		if out, _, err := depot(t, dir, "list -db DIR/scep.db "+args); err != nil || strings.Count(out, "\n") != want {
			t.Errorf("%s: %v, %q; want %d", args, err, out, want)
		}
	}
	var d map[string]any
	if out, _, err := depot(t, dir, "list -db DIR/scep.db -json -state revoked"); err != nil || json.NewDecoder(strings.NewReader(out)).Decode(&d) != nil ||
		d["id"] != string(all[4].ID) || d["state"] != "revoked" || d["revocation_reason"] != "keyCompromise" || d["by"] != "alice" || d["serial"] != "5" {
		t.Errorf("%v: %s", err, out)
	}
	var empty bytes.Buffer
	if err := run(t.Context(), []string{"list", "-db", filepath.Join(dir, "scep.db"), "-profile", ""}, nil, &empty, io.Discard); err != nil || strings.Count(empty.String(), "\n") != 5 {
		t.Errorf("of the profile without a name: %v, %q", err, &empty)
	}
}

// TestSecret gives URLs with a password in them, which is in nothing that is printed.
func TestSecret(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	for _, where := range []string{
		"postgres://u:hunter2@/db?host=/no/such/folder", "postgresql://u:hunter2@host:port/db", "postgress://u:hunter2@host/db",
		"postgres://u:hunter2@/db?sslmode=hunter2", "host=/no/such/folder password=hunter2", "password=hunter2",
	} {
		t.Setenv("DEPOT_TEST", where)
		for _, db := range []string{where, "env:DEPOT_TEST"} {
			for _, args := range [][]string{
				{"list", "-db", db}, {"export", "-from", db, "-out", filepath.Join(dir, "x")}, {"import", "-into", db, "-"},
				{"prune", "-db", db, "-denied-for", "1d"}, {"list", "-db", db, "more"},
			} {
				var out, errs bytes.Buffer
				err := run(t.Context(), args, strings.NewReader(""), &out, &errs)
				if err == nil {
					t.Errorf("%s with %s: no error", args[0], where)
				}
				if text := fmt.Sprint(&out, &errs, err); strings.Contains(text, "hunter2") {
					t.Errorf("%s: the password is in %s", args[0], text)
				}
			}
		}
	}
	if _, _, err := depot(t, dir, "list -db env:DEPOT_NO_SUCH"); err == nil || !strings.Contains(err.Error(), "DEPOT_NO_SUCH") {
		t.Errorf("a variable that is not there: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("files were made: %v, %v", entries, err)
	}
}

// interrupting ends a context once it has been read to some place.
type interrupting struct {
	r      io.Reader
	left   int
	cancel func()
}

func (r *interrupting) Read(b []byte) (int, error) {
	n, err := r.r.Read(b[:min(len(b), 4096)])
	if r.left -= n; r.left < 0 {
		r.cancel()
	}
	return n, err
}

// TestInterrupted has an import and an export end in the middle.
func TestInterrupted(t *testing.T) {
	const n = 5000
	dir := t.TempDir()
	create(t, filepath.Join(dir, "first.db"), variety(t, n)...)
	want(t, dir, "export -from DIR/first.db -out DIR/records", "exported")
	data, err := os.ReadFile(filepath.Join(dir, "records"))
	if err != nil {
		t.Fatal(err)
	}
	url := postgrestest.Shared(t).Database(t)
	for _, db := range []string{filepath.Join(dir, "scep.db"), url} {
		ctx, cancel := context.WithCancel(t.Context())
		var out, errs bytes.Buffer
		in := &interrupting{bytes.NewReader(data), len(data) / 2, cancel}
		err := run(ctx, []string{"import", "-into", db, "-"}, in, &out, &errs)
		var created, skipped int
		if fmt.Sscanf(out.String(), "imported: %d, there already: %d\n", &created, &skipped); !errors.Is(err, context.Canceled) || created == 0 || created >= n || skipped != 0 {
			t.Fatalf("%v: %s%s", err, &out, &errs)
		}
		// Of those under way some may be there without having been counted.
		out.Reset()
		if err := run(t.Context(), []string{"import", "-into", db, "-"}, bytes.NewReader(data), &out, &errs); err != nil {
			t.Fatal(err)
		}
		var rest int
		if fmt.Sscanf(out.String(), "imported: %d, there already: %d\n", &rest, &skipped); rest == 0 || skipped < created || rest+skipped != n {
			t.Errorf("%d at first, then %s", created, &out)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	if err := run(ctx, []string{"export", "-from", filepath.Join(dir, "scep.db"), "-out", filepath.Join(dir, "part")}, nil, &out, &errs); !errors.Is(err, context.Canceled) ||
		!strings.Contains(errs.String(), "not all") {
		t.Errorf("%v: %s", err, &errs)
	}
	if _, err := os.Stat(filepath.Join(dir, "part")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("half a file is left: %v", err)
	}
}

// TestSignal interrupts the program itself, as Ctrl-C does.
func TestSignal(t *testing.T) {
	dir := t.TempDir()
	create(t, filepath.Join(dir, "first.db"), variety(t, 3000)...)
	want(t, dir, "export -from DIR/first.db -out DIR/records", "exported")
	data, err := os.ReadFile(filepath.Join(dir, "records"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exampletest.Command(nil, "import", "-into", filepath.Join(dir, "scep.db"), "-")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in.Write(data[:len(data)*2/3]) // returns when most of it has been read
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(100*time.Millisecond, func() { in.Close() })
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 1 || !strings.Contains(errs.String(), "depot: ") || !strings.HasPrefix(out.String(), "imported: ") {
		t.Errorf("%v: %s%s", err, &out, &errs)
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	p := &progress{w: &out, what: "done", begun: time.Now().Add(-10 * time.Second)}
	p.count(1000)
	p.part(0.25)
	p.count(2000)
	lines := regexp.MustCompile(`^done so far: 1000, \d+/s\ndone so far: 2000, \d+/s, 25.0% of about 8000, (30|31)s left\n$`)
	if !lines.MatchString(out.String()) {
		t.Errorf("%q", &out)
	}
	out.Reset()
	p = &progress{w: &out, what: "done", begun: time.Now().Add(-10 * time.Second), terminal: true}
	p.part(0.5)
	p.count(10)
	p.done = 0
	p.count(20)
	end := p.end()
	lines = regexp.MustCompile(`^\rdone so far: 10, 1/s, 50.0% of about 20, 10s left\rdone so far: 20, 2/s +\r +\r$`)
	if !lines.MatchString(out.String()) || !strings.HasPrefix(end, "20 in 10") {
		t.Errorf("%q, %q", &out, end)
	}
	if p := position(scep.ID("8" + strings.Repeat("0", 63))); p != 0.5 {
		t.Errorf("position %v", p)
	}
}
