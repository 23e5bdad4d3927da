// Hsm is a SCEP server whose keys are in a PKCS#11 token: a hardware security module, or SoftHSM2
// to try it. The first run makes a key in the token that can only sign, "scep-ca", and another
// that opens requests, "scep-ra-1"; later runs use them again. What else the server needs is in a
// folder, as with quickstart. The program needs cgo.
//
// While the token is away the server goes on: devices are told to come back later, and /readyz
// says what is wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/examples/internal/serve"
	"github.com/scepkit/scepkit/scep"
)

func main() {
	var t token
	flag.StringVar(&t.module, "module", "/usr/lib/softhsm/libsofthsm2.so", "use this PKCS#11 `module`")
	flag.StringVar(&t.label, "token", "ca", "use the token of this `label`")
	flag.StringVar(&t.pin, "pin", "", "`file` with the PIN, or another source of it: env:NAME, credential:NAME (default: pin in the folder)")
	flag.StringVar(&t.ra, "ra", "token", "keep the key that opens requests in the `token or file`; in a file, in the folder, the token has one operation for each certificate and not three")
	serve.Main(serve.Program{Name: "hsm", Dir: "hsm-data", Keys: t.keys})
}

type token struct{ module, label, pin, ra string }

func (t *token) keys(ctx context.Context, o serve.Options) (*serve.Keys, error) {
	in := "pkcs11:token=" + serve.Escape(t.label) + ";object="
	ra := in + "scep-ra-{n}"
	switch t.ra {
	case "token":
	case "file":
		ra = serve.FileRA(o)
	default:
		return nil, fmt.Errorf("-ra %q: use token or file", t.ra)
	}
	source, err := t.source(o.Dir)
	if err != nil {
		return nil, err
	}
	pkcs11 := pkcs11.Driver{
		Module: t.module,
		PIN:    func(ctx context.Context, _ string) (scep.Secret, error) { return backend.ReadPIN(ctx, source) },
		Log:    o.Log,
	}
	keys, err := serve.Open(ctx, o, in+"scep-ca", ra, pkcs11, file.Driver{})
	if errors.Is(err, backend.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w; the README, under \"The key in an HSM\", has the commands that make a token to try", err)
	}
	return keys, err
}

// source returns where the PIN is, as backend.ReadPIN takes it.
func (t *token) source(dir string) (string, error) {
	switch kind, _, ok := strings.Cut(t.pin, ":"); {
	case ok && (kind == "file" || kind == "env" || kind == "credential"):
		return t.pin, nil
	case t.pin == "":
		return filepath.Abs(filepath.Join(dir, "pin"))
	}
	return filepath.Abs(t.pin)
}
