package custody

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

func noLink(from, to string) error {
	return &os.LinkError{Op: "link", Old: from, New: to, Err: syscall.EPERM}
}

// onlyFiles fails unless dir has exactly these names in it.
func onlyFiles(t *testing.T, dir string, want ...string) {
	t.Helper()
	var got []string
	for _, e := range must(os.ReadDir(dir)) {
		got = append(got, e.Name())
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("directory has %q; should have %q", got, want)
	}
}

func TestWriteNew(t *testing.T) {
	links := map[string]func(string, string) error{"link": os.Link, "no links": noLink}
	for name, link := range links {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, "f")
			var wg sync.WaitGroup
			var mu sync.Mutex
			var winner []byte
			for i := range 32 {
				wg.Go(func() {
					data := bytes.Repeat([]byte{byte(i)}, 4096)
					err := WriteNew(file, data, 0o600, link)
					if err != nil && !errors.Is(err, fs.ErrExist) {
						t.Error(err)
					}
					if err == nil {
						mu.Lock()
						defer mu.Unlock()
						if winner != nil {
							t.Error("two wrote the file")
						}
						winner = data
					}
				})
			}
			wg.Wait()
			if got := must(os.ReadFile(file)); winner == nil || !bytes.Equal(got, winner) {
				t.Error("the file is not what the winner wrote")
			}
			onlyFiles(t, dir, "f")
		})
	}
}

func TestWriteChain(t *testing.T) {
	dir := t.TempDir()
	name := filepath.Join(dir, "ca.pem")
	one := []*x509.Certificate{issue("one", ecTestKey().Public(), nil, ecTestKey())}
	two := []*x509.Certificate{issue("two", ecTestKey().Public(), nil, ecTestKey()), one[0]}
	has := func(certs []*x509.Certificate) {
		t.Helper()
		rest := must(os.ReadFile(name))
		for _, cert := range certs {
			var b *pem.Block
			if b, rest = pem.Decode(rest); b == nil || !bytes.Equal(b.Bytes, cert.Raw) {
				t.Errorf("%s is not there", cert.Subject)
			}
		}
		if len(rest) > 0 {
			t.Errorf("there is also %q", rest)
		}
	}
	for _, tt := range []struct {
		certs   []*x509.Certificate
		replace bool
		err     error
		has     []*x509.Certificate
	}{{one, false, nil, one}, {two, false, fs.ErrExist, one}, {two, true, nil, two}, {one, true, nil, one}} {
		if err := WriteChain(name, tt.certs, tt.replace); !errors.Is(err, tt.err) {
			t.Errorf("%v; should wrap %v", err, tt.err)
		}
		has(tt.has)
		onlyFiles(t, dir, "ca.pem")
	}
	if err := WriteChain(filepath.Join(dir, "no", "ca.pem"), one, true); err == nil || !strings.Contains(err.Error(), "make it first") {
		t.Errorf("no directory: %v", err)
	}
	for _, kind := range []string{"PRIVATE KEY", "TSS2 PRIVATE KEY"} {
		key := filepath.Join(dir, "key.pem")
		data := []byte("-----BEGIN " + kind + "-----\n")
		if err := os.WriteFile(key, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, replace := range []bool{true, false} {
			if err := WriteChain(key, one, replace); err == nil || !bytes.Equal(must(os.ReadFile(key)), data) {
				t.Errorf("%s was replaced: %v", kind, err)
			}
		}
	}
	if err := WriteChain(dir, one, true); err == nil || !strings.Contains(err.Error(), "not a file of certificates") {
		t.Errorf("directory: %v", err)
	}
}
