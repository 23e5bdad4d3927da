package main

import (
	"context"
	encoding "encoding/asn1"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/backend/pkcs11"
	"github.com/scepkit/scepkit/backend/tpm"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/status"
)

func (c *command) crl(ctx context.Context, args []string) (err error) {
	where := c.database("db")
	uri := c.flags.String("key", "", "`URI` of the CA's key, with its certificate")
	out := c.flags.String("out", "", "write the CRL, in DER, to this `file`, in place of what is there; with -shards it has {n} in it")
	url := c.flags.String("url", "", "where clients get it; with -shards it has {n} in it: `URL`")
	shards := c.flags.Int("shards", 1, "divide the certificates into `N` lists, by serial number modulo N")
	validity := age{duration: 24 * time.Hour}
	c.flags.Var(&validity, "validity", "`time` until nextUpdate, as 24h or 7d; if not given, 24h")
	if err := c.parse(args, 0, "db", "key", "out"); err != nil {
		return err
	}
	if strings.Contains(filepath.Base(*out), "{n}") != (*shards > 1) {
		return c.wrong("-out has {n} in the name of the file if, and only if, there are -shards")
	}
	if *shards > 1 && *url == "" {
		return c.wrong("-url is missing: each of several -shards has in it where it is got")
	}
	key, err := backend.Open(ctx, *uri, file.Driver{}, pkcs11.Driver{Log: slog.New(slog.DiscardHandler)}, &tpm.Driver{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, key.Close()) }()
	db, err := c.open(ctx, *where, false, patience)
	if err != nil {
		return err
	}
	defer db.Close()
	p := c.newProgress("revoked certificates read")
	crl, err := status.NewCRL(status.CRLConfig{
		Issuer: key.Identity, Depot: counted{db, p}, URL: *url, Shards: *shards, Validity: validity.duration,
		Timeout: 24 * time.Hour, Log: slog.New(slog.DiscardHandler), // the error is returned as well
	})
	if err != nil {
		return err
	}
	if err := crl.Refresh(ctx); err != nil {
		fmt.Fprintf(c.stderr, "revoked certificates read: %s; no CRL was written\n", p.end())
		return err
	}
	for i := range *shards {
		if err := ctx.Err(); err != nil { // each list that is written is good by itself
			return err
		}
		number := big.NewInt(int64(i)) // as a serial number it is in shard i
		der, err := crl.CRL(ctx, key.Certificate().RawSubject, number)
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(*out, "{n}", strconv.Itoa(i))
		if err := replace(name, der); err != nil {
			return err
		}
		fmt.Fprintf(c.stdout, "%s: number %v, %d bytes\n", name, numberOf(der), len(der))
	}
	fmt.Fprintf(c.stdout, "revoked: %s\n", p.end())
	return nil
}

// numberOf returns the number of a CRL. To parse all of it would take ten times its memory.
func numberOf(der []byte) *big.Int {
	in := cryptobyte.String(der)
	var tbs, all cryptobyte.String
	if !in.ReadASN1(&in, asn1.SEQUENCE) || !in.ReadASN1(&tbs, asn1.SEQUENCE) {
		return nil
	}
	extensions := asn1.Tag(0).Constructed().ContextSpecific()
	for !tbs.PeekASN1Tag(extensions) {
		var tag asn1.Tag
		if !tbs.ReadAnyASN1(new(cryptobyte.String), &tag) {
			return nil
		}
	}
	if !tbs.ReadASN1(&all, extensions) || !all.ReadASN1(&all, asn1.SEQUENCE) {
		return nil
	}
	for !all.Empty() {
		var one, value cryptobyte.String
		var id encoding.ObjectIdentifier
		number := new(big.Int)
		if !all.ReadASN1(&one, asn1.SEQUENCE) || !one.ReadASN1ObjectIdentifier(&id) {
			return nil
		}
		if id.Equal(encoding.ObjectIdentifier{2, 5, 29, 20}) && one.ReadASN1(&value, asn1.OCTET_STRING) && value.ReadASN1Integer(number) {
			return number
		}
	}
	return nil
}

// counted counts the revocations that are read for a full CRL.
type counted struct {
	scep.RevocationLister
	p *progress
}

func (l counted) Revocations(ctx context.Context, q scep.RevocationQuery, yield func(scep.Revocation) error) error {
	if !q.Since.IsZero() {
		return l.RevocationLister.Revocations(ctx, q, yield)
	}
	n := 0
	err := l.RevocationLister.Revocations(ctx, q, func(r scep.Revocation) error {
		if n++; n%256 == 0 {
			l.p.count(n)
		}
		return yield(r)
	})
	l.p.count(n)
	return err
}

// replace puts data in the place of a file, or of none, all at once.
func replace(name string, data []byte) error {
	temp, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(temp.Name()) // unless it has its name
	if _, err = temp.Write(data); err == nil {
		err = temp.Chmod(0o644) // a CRL is public
	}
	if err == nil {
		err = temp.Sync()
	}
	if closing := temp.Close(); err == nil {
		err = closing
	}
	if err == nil {
		err = os.Rename(temp.Name(), name)
	}
	return err
}
