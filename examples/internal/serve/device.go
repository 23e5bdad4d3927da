package serve

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/examples/internal/newfile"
	"github.com/scepkit/scepkit/scep"
)

// Escape encodes what a name of a file or a token must not have in the URI of a key.
func Escape(s string) string {
	return strings.NewReplacer("%", "%25", "?", "%3F", "#", "%23", "&", "%26", ";", "%3B", "{", "%7B").Replace(s)
}

// FileRA returns the URI, for [Open], of an RA that is in files in the folder.
func FileRA(o Options) string {
	name := Escape(filepath.Join(o.Dir, "ra-"))
	return "file:" + name + "{n}.key?chain=" + name + "{n}.pem"
}

// Open opens the keys of a CA and of its RA, by the URIs that [backend.Open] and [backend.RA]
// take, and makes what is not there: a key for the CA that can only sign, its certificate, the
// RA, and the file ca.pem in the folder. Each step is looked for before it is done, so that the
// next start goes on where one was interrupted.
func Open(ctx context.Context, o Options, ca, ra string, drivers ...backend.Driver) (_ *Keys, err error) {
	var open []*backend.Key
	closeAll := func() (err error) {
		for _, k := range slices.Backward(open) {
			err = errors.Join(err, k.Close())
		}
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, closeAll())
		}
	}()

	file := filepath.Join(o.Dir, "ca.pem")
	issuing, err := openCA(ctx, ca, o.CAKey, file, drivers)
	if err != nil {
		return nil, err
	}
	open = append(open, issuing)
	if err := keep(file, issuing.Certificate()); err != nil {
		return nil, err
	}
	now, past, err := backend.RA(ctx, issuing, ra, backend.RSA2048, backend.RAOptions{}, drivers...)
	if err != nil {
		return nil, err
	}
	open = append(append(open, now), past...)

	keys := &Keys{
		CA:    issuing.Identity,
		RA:    now.Identity,
		Where: []backend.Attribute{{Name: "CA key", Value: where(issuing)}, {Name: "RA key", Value: where(now)}},
		Check: func(ctx context.Context) error { return errors.Join(issuing.Check(ctx), now.Check(ctx)) },
		Close: closeAll,
	}
	for _, k := range past {
		keys.PastRA = append(keys.PastRA, k.Identity)
	}
	return keys, nil
}

// openCA opens the key of the CA and its certificate, or makes them.
func openCA(ctx context.Context, uri string, kind backend.KeyType, file string, drivers []backend.Driver) (*backend.Key, error) {
	k, err := backend.OpenKey(ctx, uri, drivers...)
	if errors.Is(err, backend.ErrNotFound) {
		if _, there := os.Stat(file); !errors.Is(there, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w; %s is there, so there was a key: bring it back, or use another folder for another CA", err, file)
		}
		k, err = backend.Create(ctx, uri, backend.Spec{KeyType: kind}, drivers...)
	}
	if err != nil {
		return nil, err
	}
	if len(k.Certificates) > 0 {
		return k, nil
	}
	cert, err := backend.SelfSign(ctx, k.Key, backend.CAOptions{})
	if err == nil {
		k.Identity = &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: k.Key}
		err = backend.Import(ctx, uri, k.Certificates, false, drivers...)
	}
	if err != nil {
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// keep writes the CA's certificate to a file, or makes sure that it is the one there.
func keep(file string, cert *x509.Certificate) error {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return newfile.Write(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o644)
	}
	if err != nil {
		return err
	}
	if block, _ := pem.Decode(text); block == nil || !slices.Equal(block.Bytes, cert.Raw) {
		return fmt.Errorf("%s does not have the certificate of the CA's key; use the folder that belongs to the key, or remove the file to have it written", file)
	}
	return nil
}

// where is the description of a key in short.
func where(k *backend.Key) string {
	var parts []string
	for _, a := range k.Description {
		switch a.Name {
		case "key":
			parts = append(parts, a.Value)
		case "device", "file", "protection", "token", "token serial", "CKA_LABEL", "CKA_EXTRACTABLE":
			parts = append(parts, a.Name+" "+a.Value)
		}
	}
	return strings.Join(parts, ", ")
}
