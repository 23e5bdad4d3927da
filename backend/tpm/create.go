package tpm

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
)

// createTimeout is how long Create may take at least.
const createTimeout = 3 * time.Minute

// Create makes a key that cannot leave the TPM and writes it to n.File, mode 0600. The key is
// used by an authorization value of 192 random bits, which is written to the file that
// n.AuthSource names as file:/PATH, or to n.File with .auth after it; any other AuthSource must
// have a value already, and that is taken. It is not subject to lockout: such a value cannot be
// guessed, while wrong ones given for other keys would stop this one.
//
// Create never overwrites: if there is a key or certificate file, the error wraps [fs.ErrExist].
// A value that exists is taken, as a crash may have left it. The value is on disk before the key
// is, and neither is ever seen half written.
//
// If the TPM does not know keys of the kind, the error wraps [backend.ErrUnsupported] and says
// which it knows.
func (t *TPM) Create(ctx context.Context, n Name, spec backend.Spec) (*backend.Key, error) {
	k, err := t.create(ctx, n, spec)
	if err != nil {
		return nil, n.wrap(err)
	}
	return k, nil
}

func (t *TPM) create(ctx context.Context, n Name, spec backend.Spec) (*backend.Key, error) {
	if n.Handle != 0 {
		return nil, fmt.Errorf("keys are made in files; name a file, and make the key persistent with tpm2_load and tpm2_evictcontrol if it must be: %w", backend.ErrUnsupported)
	}
	if err := n.check(); err != nil {
		return nil, err
	}
	template, err := keyTemplate(spec.KeyType, spec.Decrypt)
	if err != nil {
		return nil, err
	}
	pin, err := n.pin()
	if err != nil {
		return nil, err
	}
	if err := n.vacant(); err != nil {
		return nil, err
	}
	auth, authFile, err := n.newAuth(ctx)
	if err != nil {
		return nil, err
	}
	made, err := run(ctx, t, max(t.timeout, createTimeout), func(o *op) (*tpm2.CreateResponse, error) {
		return o.create(n.storage(), pin, template, spec.KeyType, auth)
	})
	if err != nil {
		return nil, err
	}
	file := &keyFile{storage: n.storage(), public: made.OutPublic.Bytes(), private: made.OutPrivate.Buffer}
	m := &material{storage: file.storage, pin: pin, private: made.OutPrivate, auth: auth}
	if err := m.setPublic(file.public); err != nil {
		return nil, err
	}
	if m.area.ObjectAttributes != template.ObjectAttributes {
		return nil, fmt.Errorf("the TPM made a key with other attributes than it should have (%s): %w", m.attributes(), backend.ErrUnsupported)
	}
	// It is tried out before there is a file of it.
	k, err := t.try(ctx, n, m)
	if err != nil {
		return nil, err
	}
	if err := file.write(n.File, authFile, auth); err != nil {
		return nil, err
	}
	return k, nil
}

// newAuth returns the authorization value for a new key, and the file to write it to, or "" if
// it has a place already.
func (n Name) newAuth(ctx context.Context) (auth []byte, file string, err error) {
	source := n.AuthSource
	if source == "" {
		source = absolute(n.authFile())
	}
	if path, ok, err := filePath(source); err != nil {
		return nil, "", err
	} else if ok {
		_, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			random := make([]byte, maxAuth/4*3) // as long in base64 as a value may be
			rand.Read(random)
			return base64.RawURLEncoding.AppendEncode(nil, random), path, nil
		}
		if err != nil {
			return nil, "", err
		}
	}
	auth, err = readAuth(ctx, source)
	if err == nil && len(auth) > maxAuth {
		err = fmt.Errorf("the authorization value has %d bytes; give at most %d: %w", len(auth), maxAuth, backend.ErrPIN)
	}
	return auth, "", err
}

// filePath returns the file that source names, if it names one.
func filePath(source string) (path string, ok bool, err error) {
	if filepath.IsAbs(source) {
		return source, true, nil
	}
	if !strings.HasPrefix(source, "file:") {
		return "", false, nil
	}
	u, err := backend.ParseURI(source)
	if err != nil {
		return "", false, err
	}
	return u.Path, true, u.Only(nil, nil)
}

// vacant reports which of the files exists.
func (n Name) vacant() error {
	for _, name := range []string{n.File, n.Chain} {
		if name == "" {
			continue
		}
		_, err := os.Lstat(name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		case name == n.File:
			return fmt.Errorf("there is a file of that name; open the key, or name another: %w", fs.ErrExist)
		default:
			return fmt.Errorf("there is a certificate in %q and no key; restore the key, or name other files: %w", name, fs.ErrExist)
		}
	}
	return nil
}

// create has the TPM make a key.
func (o *op) create(ref storageRef, pin []byte, template tpm2.TPMTPublic, kind backend.KeyType, auth []byte) (*tpm2.CreateResponse, error) {
	if err := o.knows(template); err != nil {
		if kindOf(err) != final || explained(err) {
			return nil, err
		}
		return nil, fmt.Errorf("this TPM makes no %v key (%w); %s: %w", kind, err, o.alternatives(), backend.ErrUnsupported)
	}
	s, err := o.useStorage(ref, pin)
	if err != nil {
		return nil, err
	}
	session, err := o.useSession(s)
	if err != nil {
		return nil, err
	}
	rsp, err := execute(o, func() (*tpm2.CreateResponse, error) {
		return tpm2.Create{
			ParentHandle: tpm2.AuthHandle{Handle: s.handle, Name: tpm2.TPM2BName{Buffer: s.name}, Auth: session.with(nil, false)},
			InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: auth}}},
			InPublic:     tpm2.New2B(template),
		}.Execute(o)
	})
	if denied(err) {
		return nil, fmt.Errorf("the storage key at %#x has a password; use one without (%w): %w", uint32(ref.handle), err, backend.ErrPIN)
	}
	return rsp, err
}

// knows reports why the TPM cannot have a key of a kind.
func (o *op) knows(template tpm2.TPMTPublic) error {
	_, err := tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{Type: template.Type, Parameters: template.Parameters}}.Execute(o)
	var rc tpm2.TPMRC
	if errors.As(err, &rc) && parameter(rc) {
		return rc
	}
	return err
}

// alternatives says what keys the TPM can have.
func (o *op) alternatives() string {
	var known []string
	for _, kind := range []backend.KeyType{backend.RSA2048, backend.RSA3072, backend.RSA4096, backend.P256, backend.P384} {
		template, err := keyTemplate(kind, false)
		if err == nil && o.knows(template) == nil {
			known = append(known, kind.String())
		}
	}
	if known == nil {
		return "use a key of file: or pkcs11:"
	}
	return "use " + strings.Join(known, ", ")
}

// write writes the value, unless authFile is "", and then the key.
func (k *keyFile) write(name, authFile string, auth []byte) error {
	der, err := k.marshal()
	if err != nil {
		return err
	}
	if authFile != "" {
		if err := custody.WriteNew(authFile, append(slices.Clip(auth), '\n'), 0o600, os.Link); err != nil {
			return fmt.Errorf("writing the authorization value: %w", err)
		}
	}
	// If that fails the value stays: another process may have made a key with it meanwhile.
	if err := custody.WriteNew(name, pem.EncodeToMemory(&pem.Block{Type: blockType, Bytes: der}), 0o600, os.Link); err != nil {
		return fmt.Errorf("writing the key: %w", err)
	}
	return nil
}
