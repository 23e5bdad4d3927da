package backend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/scepkit/scepkit/scep"
)

// maxPIN is how many bytes a file with a PIN may have.
const maxPIN = 4096

// ReadPIN reads a PIN or authorization value from source:
//
//	file:/run/secrets/pin   a file
//	/run/secrets/pin        the same, not percent-decoded
//	env:NAME                an environment variable
//	credential:NAME         a systemd credential: the file NAME in $CREDENTIALS_DIRECTORY
//
// A file has at most 4096 bytes, of which one line feed at the end, with a carriage return
// before it or not, is not part of the PIN. Nobody but owner and group may read it, and nobody
// but its owner write it; Windows has no such modes, and none are checked there. The environment
// of a process can be read by everything that runs as the same user, and is passed on to
// programs that it starts: prefer a file.
//
// No PIN is an error that wraps [ErrPIN], another kind of source (as a program to run) one that
// wraps [ErrUnsupported]. No error repeats what was read.
func ReadPIN(ctx context.Context, source string) (scep.Secret, error) {
	kind, name, ok := strings.Cut(source, ":")
	switch {
	case filepath.IsAbs(source):
		return readPINFile(ctx, source)
	case ok && kind == "file":
		u, err := ParseURI(source)
		if err != nil {
			return scep.Secret{}, err
		}
		if err := u.Only(nil, nil); err != nil {
			return scep.Secret{}, err
		}
		return readPINFile(ctx, u.Path)
	case ok && kind == "env":
		pin := os.Getenv(name)
		if pin == "" {
			return scep.Secret{}, fmt.Errorf("backend: the environment variable %q, which should have the PIN, is not set or empty: %w", name, ErrPIN)
		}
		return scep.NewSecret(pin), nil
	case ok && kind == "credential":
		return readCredential(ctx, name)
	}
	// It may be the PIN itself, so it is not repeated.
	return scep.Secret{}, fmt.Errorf("backend: the source of a PIN is file:/PATH, env:NAME or credential:NAME; programs are not run, and a PIN is not taken from a URI or flag: %w", ErrUnsupported)
}

func readCredential(ctx context.Context, name string) (scep.Secret, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, `/\`) || control(name) {
		return scep.Secret{}, fmt.Errorf("backend: credential:%q is not the name of a file in $CREDENTIALS_DIRECTORY; leave directories out: %w", name, ErrUnsupported)
	}
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return scep.Secret{}, fmt.Errorf("backend: no credential %q: CREDENTIALS_DIRECTORY is not set; have systemd set it, with LoadCredential=%s:/PATH: %w", name, name, ErrPIN)
	}
	return readPINFile(ctx, filepath.Join(dir, name))
}

// readPINFile reads a file, or a pipe, whose other end nobody may ever write to.
func readPINFile(ctx context.Context, name string) (scep.Secret, error) {
	if err := ctx.Err(); err != nil {
		return scep.Secret{}, fmt.Errorf("backend: reading the PIN file: %w", context.Cause(ctx))
	}
	type result struct {
		pin scep.Secret
		err error
	}
	done := make(chan result, 1)
	go func() {
		pin, err := readPINNow(name)
		done <- result{pin, err}
	}()
	select {
	case r := <-done:
		return r.pin, r.err
	case <-ctx.Done():
		return scep.Secret{}, fmt.Errorf("backend: reading the PIN file %q, which does not end: %w", name, context.Cause(ctx))
	}
}

func readPINNow(name string) (scep.Secret, error) {
	fail := func(err error) (scep.Secret, error) {
		return scep.Secret{}, fmt.Errorf("backend: reading the PIN file: %w: %w", err, ErrPIN)
	}
	f, err := os.Open(name)
	if err != nil {
		return fail(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(err)
	}
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o026 != 0 {
		return fail(fmt.Errorf("others may read or change %q (mode %04o); run `chmod 600 %s`, and change the PIN if they may have done so", name, mode, name))
	}
	data, err := io.ReadAll(io.LimitReader(f, maxPIN+1))
	if err != nil {
		return fail(err)
	}
	if len(data) > maxPIN {
		return fail(fmt.Errorf("%q has more than %d bytes; name a file with nothing but the PIN in it", name, maxPIN))
	}
	pin := string(data)
	if s, ok := strings.CutSuffix(pin, "\n"); ok {
		pin = strings.TrimSuffix(s, "\r")
	}
	if pin == "" {
		return fail(errors.New("there is no PIN in " + name))
	}
	return scep.NewSecret(pin), nil
}
