package main

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/scepkit/scepkit/depot/transfer"
	"github.com/scepkit/scepkit/scep"
)

func (c *command) export(ctx context.Context, args []string) (err error) {
	from := c.database("from")
	out := c.flags.String("out", "", "write to this new `file`; - is the standard output")
	if err := c.parse(args, 0, "from", "out"); err != nil {
		return err
	}
	db, err := c.open(ctx, *from, false, patience)
	if err != nil {
		return err
	}
	defer db.Close()
	p := c.newProgress("exported")
	if *out == "-" {
		err := transfer.Export(ctx, positioned{db, p}, c.stdout, p.count)
		fmt.Fprintf(c.stderr, "exported: %s\n", p.end())
		return err
	}
	file, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = transfer.Export(ctx, positioned{db, p}, file, p.count)
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	exported := p.end()
	if err != nil {
		fmt.Fprintf(c.stderr, "exported: %s, not all; %s is deleted\n", exported, *out)
		return errors.Join(err, os.Remove(*out)) // it is ours, and not whole
	}
	fmt.Fprintf(c.stdout, "exported: %s\n", exported)
	return nil
}

// positioned tells a progress how far somebody has read all records.
type positioned struct {
	database
	p *progress
}

func (d positioned) Scan(ctx context.Context, yield func(all []*scep.Record, done float64) error) error {
	return d.database.Scan(ctx, func(all []*scep.Record, done float64) error {
		d.p.part(done)
		return yield(all, done)
	})
}

func (c *command) load(ctx context.Context, args []string) error {
	into := c.database("into")
	if err := c.parse(args, 1, "into"); err != nil {
		return err
	}
	p := c.newProgress("done")
	in := c.stdin
	if name := c.flags.Arg(0); name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return err
		}
		defer file.Close()
		info, err := file.Stat()
		if err != nil {
			return err
		}
		in = &positionedReader{r: file, size: info.Size(), p: p}
	}
	db, err := c.open(ctx, *into, true, patience)
	if err != nil {
		return err
	}
	n, skipped, err := transfer.Import(ctx, in, db, p.count)
	return c.imported(p, n, skipped, errors.Join(err, db.Close()))
}

// imported prints what was imported, also if it was not all.
func (c *command) imported(p *progress, n, skipped int, err error) error {
	p.end()
	fmt.Fprintf(c.stdout, "imported: %d, there already: %d\n", n, skipped)
	return err
}

// positionedReader tells a progress how far a file has been read.
type positionedReader struct {
	r          io.Reader
	read, size int64
	p          *progress
}

func (r *positionedReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if r.read += int64(n); r.size > 0 {
		r.p.part(float64(r.read) / float64(r.size))
	}
	return n, err
}

func (c *command) micromdm(ctx context.Context, args []string) error {
	from := c.flags.String("from", "", "`directory` of the micromdm/scep server, with index.txt")
	into := c.database("into")
	ca := c.flags.String("ca", "", "PEM `file` with the CA's certificate")
	profile := c.flags.String("profile", "", "Config.Profile of the `handler` that is to know the devices")
	keep := c.flags.Bool("keep-replaced", false, "import what is revoked without a reason, as micromdm does when it issues another certificate\nto the same subject, as not revoked")
	if err := c.parse(args, 0, "from", "into", "ca"); err != nil {
		return err
	}
	cert, err := readCertificate(*ca)
	if err != nil {
		return err
	}
	total, err := countLines(filepath.Join(*from, "index.txt"))
	if err != nil {
		return err
	}
	db, err := c.open(ctx, *into, true, patience)
	if err != nil {
		return err
	}
	p := c.newProgress("done")
	n, skipped, err := transfer.ImportMicroMDM(ctx, *from, db, transfer.MicroMDM{
		CA: cert, Profile: *profile, KeepReplaced: *keep,
		Report: func(name string, err error) { p.end(); fmt.Fprintf(c.stderr, "%q: %v\n", name, err) },
	}, func(n int) {
		p.part(float64(n) / float64(max(total, 1)))
		p.count(n)
	})
	return c.imported(p, n, skipped, errors.Join(err, db.Close()))
}

func countLines(name string) (n int, err error) {
	file, err := os.Open(name)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	buf := make([]byte, 1<<16)
	for {
		read, err := file.Read(buf)
		n += bytes.Count(buf[:read], []byte("\n"))
		if err == io.EOF {
			return n, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func readCertificate(name string) (*x509.Certificate, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s has no certificate in PEM", name)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}
