package backend

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// pinFile writes a file and returns its name.
func pinFile(t *testing.T, data string, mode fs.FileMode) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "a%20pin")
	if err := errors.Join(os.WriteFile(name, []byte(data), 0o600), os.Chmod(name, mode)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestReadPIN(t *testing.T) {
	for data, want := range map[string]string{
		"1234": "1234", "1234\n": "1234", "1234\r\n": "1234", "1234\n\n": "1234\n", "1234\r": "1234\r", " 12 34 ": " 12 34 ", "a\nb\n": "a\nb",
		strings.Repeat("x", 4096): strings.Repeat("x", 4096),
	} {
		for _, mode := range []fs.FileMode{0o600, 0o400, 0o440, 0o640} {
			name := pinFile(t, data, mode)
			for _, source := range []string{name, "file:" + strings.ReplaceAll(name, "%", "%25"), "file://" + strings.ReplaceAll(name, "%", "%25")} {
				pin, err := ReadPIN(t.Context(), source)
				if err != nil || pin.Reveal() != want {
					t.Errorf("%q, mode %o: %q, %v", data, mode, pin.Reveal(), err)
				}
			}
		}
	}
	t.Setenv("BACKEND_TEST_PIN", "1234\n")
	if pin, err := ReadPIN(t.Context(), "env:BACKEND_TEST_PIN"); err != nil || pin.Reveal() != "1234\n" {
		t.Errorf("environment: %q, %v", pin.Reveal(), err)
	}
	name := pinFile(t, "1234\n", 0o400)
	t.Setenv("CREDENTIALS_DIRECTORY", filepath.Dir(name))
	if pin, err := ReadPIN(t.Context(), "credential:a%20pin"); err != nil || pin.Reveal() != "1234" {
		t.Errorf("credential: %q, %v", pin.Reveal(), err)
	}
	t.Chdir(filepath.Dir(name))
	if pin, err := ReadPIN(t.Context(), "file:a%2520pin"); err != nil || pin.Reveal() != "1234" {
		t.Errorf("relative: %q, %v", pin.Reveal(), err)
	}
}

func TestReadPINRefuses(t *testing.T) {
	t.Setenv("BACKEND_TEST_EMPTY", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	dir := t.TempDir()
	for source, tt := range map[string]struct {
		is   error
		says string
	}{
		pinFile(t, "", 0o600):                        {ErrPIN, "no PIN in"},
		pinFile(t, "\n", 0o600):                      {ErrPIN, "no PIN in"},
		pinFile(t, "\r\n", 0o600):                    {ErrPIN, "no PIN in"},
		pinFile(t, strings.Repeat("x", 4097), 0o600): {ErrPIN, "more than 4096 bytes"},
		dir:                                {ErrPIN, "reading the PIN file"},
		"file:" + filepath.Join(dir, "no"): {ErrPIN, "no such file"},
		"file:":                            {ErrPIN, "reading the PIN file"},
		"file:/x?y=z":                      {ErrUnsupported, "has y"},
		"env:BACKEND_TEST_EMPTY":           {ErrPIN, "not set or empty"},
		"env:BACKEND_TEST_UNSET":           {ErrPIN, "not set or empty"},
		"env:":                             {ErrPIN, "not set or empty"},
		"credential:pin":                   {ErrPIN, "LoadCredential=pin"},
		"credential:a/b":                   {ErrUnsupported, "leave directories out"},
		"credential:..":                    {ErrUnsupported, "leave directories out"},
		"credential:":                      {ErrUnsupported, "leave directories out"},
		"s3cr3t":                           {ErrUnsupported, "file:/PATH"},
		"s3:cr3t":                          {ErrUnsupported, "file:/PATH"},
		"|/usr/bin/s3cr3t":                 {ErrUnsupported, "programs are not run"},
		"exec:/usr/bin/s3cr3t":             {ErrUnsupported, "programs are not run"},
		"":                                 {ErrUnsupported, "file:/PATH"},
	} {
		if runtime.GOOS == "windows" && tt.says == "no such file" {
			continue
		}
		pin, err := ReadPIN(t.Context(), source)
		if !errors.Is(err, tt.is) || !pin.Empty() || !strings.Contains(err.Error(), tt.says) || !strings.HasPrefix(err.Error(), "backend: ") {
			t.Errorf("%.50q: %v; should say %q", source, err, tt.says)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cr3t") || strings.Contains(err.Error(), "cr3t")) {
			t.Errorf("the error repeats what may be the PIN: %v", err)
		}
	}
	if runtime.GOOS == "windows" {
		return
	}
	for _, mode := range []fs.FileMode{0o644, 0o604, 0o602, 0o620, 0o660, 0o666} {
		_, err := ReadPIN(t.Context(), pinFile(t, "s3cr3t", mode))
		if !errors.Is(err, ErrPIN) || !strings.Contains(err.Error(), "chmod 600") || strings.Contains(err.Error(), "s3cr3t") {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
}

func TestReadPINContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := ReadPIN(ctx, pinFile(t, "1234", 0o600)); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
