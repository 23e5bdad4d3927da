package main

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/examples/internal/exampletest"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/sceptest"
)

// depot runs the program; in args, DIR is the directory.
func depot(t *testing.T, dir string, args string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errs bytes.Buffer
	fields := strings.Fields(args)
	for i := range fields {
		fields[i] = strings.ReplaceAll(fields[i], "DIR", dir)
	}
	err = run(t.Context(), fields, strings.NewReader(""), &out, &errs)
	return out.String(), errs.String(), err
}

// want runs the program, which is to say that.
func want(t *testing.T, dir, args, says string) {
	t.Helper()
	stdout, stderr, err := depot(t, dir, args)
	if err != nil || !strings.Contains(stdout, says) {
		t.Errorf("%s: %v\n%s%s\nwant %q", args, err, stdout, stderr, says)
	}
}

// sameLines reports whether two files have the same records, in whatever order.
func sameLines(a, b []byte) bool {
	x, y := bytes.SplitAfter(a, []byte("\n")), bytes.SplitAfter(b, []byte("\n"))
	slices.SortFunc(x, bytes.Compare)
	slices.SortFunc(y, bytes.Compare)
	return slices.EqualFunc(x, y, bytes.Equal)
}

func TestMain(m *testing.M) {
	if os.Getenv(exampletest.Variable) != "" {
		main()
		return
	}
	os.Exit(postgrestest.Run(m))
}

func create(t *testing.T, path string, all ...*scep.Record) {
	t.Helper()
	db, err := sqlite.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for i, rec := range all {
		rec.ID = scep.ID(fmt.Sprintf("%064x", i+1))
		rec.Transaction = rec.ID
		if err := db.Create(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExportImport(t *testing.T) {
	dir := t.TempDir()
	create(t, filepath.Join(dir, "scep.db"), &scep.Record{State: scep.Denied}, &scep.Record{State: scep.Pending}, &scep.Record{State: scep.Issued})
	want(t, dir, "export -from DIR/scep.db -out DIR/records", "exported: 3 in ")
	want(t, dir, "import -into DIR/new.db DIR/records", "imported: 3, there already: 0\n")
	want(t, dir, "import -into DIR/new.db DIR/records", "imported: 0, there already: 3\n")
	want(t, dir, "export -from DIR/new.db -out DIR/again", "exported: 3 in ")
	first, err := os.ReadFile(filepath.Join(dir, "records"))
	if err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(filepath.Join(dir, "again")); err != nil || !sameLines(first, second) {
		t.Errorf("what came is not what went: %v", err)
	}
	if info, err := os.Stat(filepath.Join(dir, "records")); err != nil || info.Mode().Perm()&0o077 != 0 && os.PathSeparator == '/' {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}

	if _, _, err := depot(t, dir, "export -from DIR/scep.db -out DIR/records"); !errors.Is(err, os.ErrExist) {
		t.Errorf("over a file: %v", err)
	}
	if now, err := os.ReadFile(filepath.Join(dir, "records")); err != nil || !bytes.Equal(now, first) {
		t.Errorf("the file has changed: %v", err)
	}
	if _, _, err := depot(t, dir, "export -from DIR/missing.db -out DIR/other"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("from a database that is not there: %v", err)
	}
	for _, name := range []string{"missing.db", "other"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s was made", name)
		}
	}
}

func TestPrune(t *testing.T) {
	t.Run("SQLite", func(t *testing.T) { testPrune(t, "DIR/scep.db") })
	t.Run("PostgreSQL", func(t *testing.T) { testPrune(t, postgrestest.Shared(t).Database(t)) })
}

func testPrune(t *testing.T, db string) {
	dir := t.TempDir()
	ago := func(days int) time.Time { return time.Now().AddDate(0, 0, -days) }
	create(t, filepath.Join(dir, "first.db"),
		&scep.Record{State: scep.Issued, NotAfter: ago(100)}, &scep.Record{State: scep.Issued, NotAfter: ago(80)},
		&scep.Record{State: scep.Revoked, NotAfter: ago(-1), Revoked: ago(300), Changed: ago(300)},
		&scep.Record{State: scep.Denied, Changed: ago(31)}, &scep.Record{State: scep.Denied, Changed: ago(29)},
		&scep.Record{State: scep.Pending, Changed: ago(31)})
	want(t, dir, "export -from DIR/first.db -out DIR/all", "exported: 6 in ")
	want(t, dir, "import -into "+db+" DIR/all", "imported: 6")
	want(t, dir, "prune -db "+db+" -expired-for 90d -denied-for 30d -dry-run", "to be deleted: 2\n")
	want(t, dir, "prune -db "+db+" -denied-for 720h", "deleted: 1\n")
	want(t, dir, "prune -db "+db+" -expired-for 90d -denied-for 30d", "deleted: 1\n")
	want(t, dir, "prune -db "+db+" -abandoned-for 30d", "deleted: 1\n")
	want(t, dir, "prune -db "+db+" -expired-for 0d -denied-for 0d -abandoned-for 0d", "deleted: 2\n")
	want(t, dir, "export -from "+db+" -out DIR/records", "exported: 1 in ")
}

func TestMicroMDM(t *testing.T) {
	dir := t.TempDir()
	ca := sceptest.NewCA(t)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now(), NotAfter: time.Now().AddDate(1, 0, 0),
	}, ca.Certificate(), sceptest.RSA(1).Public(), ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"ca.pem":       pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Certificate().Raw}),
		"device.2.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		"index.txt":    []byte("V\t270101000000Z\t\t02\tdevice.2.pem\t/CN=device\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const args = "micromdm -from DIR -into DIR/scep.db -ca DIR/ca.pem"
	want(t, dir, args, "imported: 1, there already: 0\n")
	want(t, dir, args, "imported: 0, there already: 1\n")
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Setenv("DEPOT_TEST", postgrestest.Shared(t).Database(t))
		const args = "micromdm -from DIR -into env:DEPOT_TEST -ca DIR/ca.pem"
		want(t, dir, args, "imported: 1, there already: 0\n")
		want(t, dir, args, "imported: 0, there already: 1\n")
		want(t, dir, "list -db env:DEPOT_TEST -state issued", "\t2\t")
	})
	if err := os.Rename(filepath.Join(dir, "device.2.pem"), filepath.Join(dir, "device.3.pem")); err != nil {
		t.Fatal(err)
	}
	if _, stderr, err := depot(t, dir, args); err == nil || !strings.Contains(stderr, "device.2.pem") || !strings.Contains(stderr, "device.3.pem") {
		t.Errorf("with damage: %v\n%s", err, stderr)
	}

	// A certificate that another has replaced, as it is and as if it were not.
	if err := os.Rename(filepath.Join(dir, "device.3.pem"), filepath.Join(dir, "device.2.pem")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "index.txt"), []byte("R\t270101000000Z\t260101000000Z\t02\tdevice.2.pem\t/CN=device\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]scep.State{"revoked.db": scep.Revoked, "kept.db -keep-replaced": scep.Issued} {
		file, flag, _ := strings.Cut(name, " ")
		if _, stderr, err := depot(t, dir, "micromdm -from DIR -into DIR/"+file+" -ca DIR/ca.pem "+flag); err != nil {
			t.Fatalf("%v\n%s", err, stderr)
		}
		db, err := sqlite.Open(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if rec, err := db.GetSerial(t.Context(), ca.Certificate().RawSubject, big.NewInt(2)); err != nil || rec.State != want {
			t.Errorf("%s: %v, %v", name, rec, err)
		}
	}
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	for _, args := range []string{
		"", "lists", "list", "list -db DIR/scep.db -state lost", "export", "export -from DIR/scep.db", "export -from DIR/scep.db -out DIR/x more", "export -x",
		"import", "import -into DIR/scep.db", "micromdm -from DIR -into DIR/scep.db", "prune -db DIR/scep.db",
		"prune -db DIR/scep.db -expired-for 90", "prune -db DIR/scep.db -expired-for -1h", "prune -db DIR/scep.db -denied-for 99999d",
		"crl -db DIR/scep.db -key file:DIR/ca.key", "crl -db DIR/scep.db -key file:DIR/ca.key -out DIR/{n}.crl", "crl -db DIR/scep.db -key file:DIR/ca.key -out DIR/x.crl -shards 2",
	} {
		if _, stderr, err := depot(t, dir, args); !errors.Is(err, errUsage) || stderr == "" {
			t.Errorf("%q: %v, %q", args, err, stderr)
		}
	}
	want(t, dir, "help", "usage")
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("files were made: %v, %v", entries, err)
	}
}
