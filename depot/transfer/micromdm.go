package transfer

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/scepkit/scepkit/scep"
)

// A MicroMDM says how [ImportMicroMDM] makes records.
type MicroMDM struct {
	// CA is the certificate of the CA that issued the others: ca.pem. Required.
	CA *x509.Certificate

	// Profile is Config.Profile of the handler that is to know the devices.
	Profile string

	// KeepReplaced imports what index.txt calls revoked without a reason as if it were not. For
	// micromdm calls every certificate revoked whose subject is, or ends with, that of one that
	// it issued later, be it to another device, and tells nobody: where devices share a subject,
	// most of them have such a certificate. "openssl ca -revoke" gives no reason either unless it
	// is told one; after this import, revoke here what it has revoked. What an earlier import has
	// made stays.
	KeepReplaced bool

	// Report, if not nil, is called with what could not be imported: a file, or a line of
	// index.txt. It is not called by two goroutines at once.
	Report func(name string, err error)
}

// ImportMicroMDM makes a record of each certificate in the folder of a micromdm/scep server, so
// that its device can renew it, and get it, here. The handler must have the same CA; in its
// Config.PastRA too, for devices that have kept its certificate and know of no RA. The folder has
// index.txt, as "openssl ca" writes it, and files named for common name and serial number,
// such as device-1.2.pem. It is only read; ca.key is not.
//
// What index.txt calls revoked is; but see KeepReplaced. (micromdm revokes what a device had before
// when it issues another certificate to the same subject; it gives no reason, and the time without
// its zone.) A file that is not there under its name, as where a system could not have all of its
// characters, is looked for by its serial number.
//
// It returns how many records it created, or revoked, and how many it skipped since they were
// there already: it can be called again after it was interrupted, or after more was issued or
// revoked. What is damaged, not in index.txt or not of this CA is reported, the rest is
// imported, and the error wraps [ErrIncomplete]. progress is as in [Import].
func ImportMicroMDM(ctx context.Context, dir string, to scep.Depot, o MicroMDM, progress func(n int)) (n, skipped int, err error) {
	if o.CA == nil || !o.CA.IsCA {
		return 0, 0, errors.New("transfer: MicroMDM.CA must be the certificate of a CA, that is in ca.pem")
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, 0, fmt.Errorf("transfer: %w", err)
	}
	defer root.Close()
	index, err := root.Open("index.txt")
	if err != nil {
		return 0, 0, fmt.Errorf("transfer: %s is no folder of micromdm/scep: %w", dir, err)
	}
	defer index.Close()

	m := &micromdm{MicroMDM: o, root: root, to: to, now: time.Now(), tally: tally{progress: progress, report: o.Report}, other: make(map[string]bool)}
	m.files = sync.OnceValues(m.list)
	in := newLines(index)
	type numbered struct {
		n    int
		line string
	}
	next := func() (numbered, error) {
		data, err := in.next()
		return numbered{in.n, string(data)}, err
	}
	err = parallel(ctx, width, next, func(ctx context.Context, l numbered) error { return m.line(ctx, l.n, l.line) })
	if err == nil {
		err = m.unlisted(ctx)
	}
	return m.tally.end(err)
}

// micromdm is one import.
type micromdm struct {
	MicroMDM
	root  *os.Root
	to    scep.Depot
	now   time.Time
	tally tally

	files func() (map[string][]string, error) // in the folder, by serial number

	mu    sync.Mutex
	other map[string]bool // files that were imported and have another number in their names
}

// line imports the certificate of one line of index.txt. An error is one of the depot.
func (m *micromdm) line(ctx context.Context, n int, line string) error {
	if n == 1 {
		line = strings.TrimPrefix(line, "\ufeff") // from an editor
	}
	if strings.TrimSpace(line) == "" || line[0] == '#' {
		return nil
	}
	e, err := parseEntry(line, m.now)
	if err != nil {
		m.tally.problem(fmt.Sprintf("index.txt, line %d", n), err)
		return nil
	}
	if e.unclear != nil {
		m.tally.problem(fmt.Sprintf("index.txt, line %d", n), e.unclear)
	}
	cert, err := m.certificate(e)
	if err != nil {
		m.tally.problem(e.file, err)
		return nil
	}
	serial := cert.SerialNumber
	rec := &scep.Record{
		ID:          hashID("scepkit micromdm record", cert.RawIssuer, serial.Bytes()),
		Transaction: hashID("scepkit micromdm transaction", cert.RawIssuer, serial.Bytes()),
		Profile:     m.Profile, Remark: "from a depot of micromdm/scep",
		State: scep.Issued, Issuer: cert.RawIssuer, Serial: serial, Certificate: cert.Raw, NotAfter: cert.NotAfter,
		Created: cert.NotBefore, Changed: m.now,
	}
	if e.revoked && (e.stated || !m.KeepReplaced) {
		rec.State, rec.Revoked, rec.RevocationReason = scep.Revoked, e.at, int(e.reason)
	}
	changed, err := m.put(ctx, rec)
	var conflict *conflictError
	switch {
	case errors.As(err, &conflict):
		m.tally.problem(e.file, err)
	case err != nil:
		return err
	default:
		m.tally.count(changed)
	}
	return nil
}

// conflictError says that the depot has something else in a record's place.
type conflictError struct{ error }

// put creates rec, or revokes what is there, and reports whether it had to.
func (m *micromdm) put(ctx context.Context, rec *scep.Record) (bool, error) {
	for {
		err := m.to.Create(ctx, rec)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, scep.ErrExists) {
			return false, fmt.Errorf("transfer: creating record %s: %w", rec.ID, err)
		}
		there, err := m.to.Get(ctx, rec.ID)
		if errors.Is(err, scep.ErrNotFound) {
			return false, &conflictError{serialTaken(ctx, m.to, rec)}
		}
		if err != nil {
			return false, fmt.Errorf("transfer: reading record %s: %w", rec.ID, err)
		}
		if there.Profile != rec.Profile || !bytes.Equal(there.Certificate, rec.Certificate) {
			return false, &conflictError{fmt.Errorf("record %s is there already, with another certificate or under profile %q", rec.ID, there.Profile)}
		}
		if rec.State != scep.Revoked || there.State != scep.Issued || !there.Unrevoked.IsZero() {
			return false, nil
		}
		there.State, there.Revoked, there.RevocationReason, there.Changed = scep.Revoked, rec.Revoked, rec.RevocationReason, rec.Changed
		err = m.to.Update(ctx, there)
		if err == nil {
			return true, nil
		}
		if !errors.Is(err, scep.ErrStale) && !errors.Is(err, scep.ErrNotFound) {
			return false, fmt.Errorf("transfer: updating record %s: %w", rec.ID, err)
		}
	}
}

// certificate reads the certificate of an entry, under its name or another.
func (m *micromdm) certificate(e *entry) (*x509.Certificate, error) {
	cert, err := m.read(e, e.file)
	var path *fs.PathError
	if errors.As(err, &path) { // for some names, not only fs.ErrNotExist
		all, listing := m.files()
		if listing != nil {
			return nil, listing
		}
		for _, name := range all[e.serial.String()] {
			if found, err := m.read(e, name); err == nil {
				return found, nil
			}
		}
	}
	if number, ok := serialOf(e.file); err == nil && (!ok || number.Cmp(e.serial) != 0) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.other[e.file] = true
	}
	return cert, err
}

// read reads the certificate in a file and makes sure that it is that of the entry.
func (m *micromdm) read(e *entry, name string) (*x509.Certificate, error) {
	if info, err := m.root.Stat(name); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() { // to open a pipe would wait for who writes to it
		return nil, errors.New("is not a file")
	}
	f, err := m.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("has no certificate in PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, err
	}
	switch {
	case cert.SerialNumber.Cmp(e.serial) != 0:
		return nil, fmt.Errorf("has serial number %x, and index.txt says %x", cert.SerialNumber, e.serial)
	case !bytes.Equal(cert.RawIssuer, m.CA.RawSubject):
		return nil, fmt.Errorf("was issued by %q, not by %q", cert.Issuer, m.CA.Subject)
	case cert.IsCA:
		return nil, errors.New("is the certificate of a CA")
	}
	if err := checkSignature(cert, m.CA); err != nil {
		return nil, fmt.Errorf("was not issued by %q: %w", m.CA.Subject, err)
	}
	return cert, nil
}

// checkSignature reports why ca did not sign cert. micromdm signs as the CSR was signed, also with
// SHA-1, which crypto/x509 does not verify: to say which certificates there are that is good enough.
func checkSignature(cert, ca *x509.Certificate) error {
	err := cert.CheckSignatureFrom(ca)
	key, ok := ca.PublicKey.(*rsa.PublicKey)
	if cert.SignatureAlgorithm != x509.SHA1WithRSA || !ok || !errors.As(err, new(x509.InsecureAlgorithmError)) {
		return err
	}
	sum := sha1.Sum(cert.RawTBSCertificate)
	return rsa.VerifyPKCS1v15(key, crypto.SHA1, sum[:], cert.Signature)
}

// unlisted reports the certificates in the folder that are not in the depot, as they would be
// if index.txt had them.
func (m *micromdm) unlisted(ctx context.Context) error {
	return m.walk(func(name string, serial *big.Int) error {
		if m.tally.bad[name] || m.other[name] {
			return nil
		}
		_, err := m.to.GetSerial(ctx, m.CA.RawSubject, serial)
		if errors.Is(err, scep.ErrNotFound) {
			m.tally.problem(name, errors.New("is not in index.txt"))
		} else if err != nil {
			return fmt.Errorf("transfer: looking up certificate %x: %w", serial, err)
		}
		return nil
	})
}

// list returns the names of certificates in the folder by the serial numbers in them.
func (m *micromdm) list() (map[string][]string, error) {
	all := make(map[string][]string)
	err := m.walk(func(name string, serial *big.Int) error {
		all[serial.String()] = append(all[serial.String()], name)
		return nil
	})
	return all, err
}

// walk calls f for each file that is named as a certificate is.
func (m *micromdm) walk(f func(name string, serial *big.Int) error) error {
	dir, err := m.root.Open(".")
	if err != nil {
		return fmt.Errorf("transfer: %w", err)
	}
	defer dir.Close()
	for {
		some, err := dir.ReadDir(1000)
		for _, file := range some {
			if serial, ok := serialOf(file.Name()); ok {
				if err := f(file.Name(), serial); err != nil {
					return err
				}
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("transfer: %w", err)
		}
	}
}

// serialOf returns the serial number in a file's name: NAME.SERIAL.pem.
func serialOf(file string) (*big.Int, bool) {
	base, ok := strings.CutSuffix(file, ".pem")
	digits := strings.TrimPrefix(filepath.Ext(base), ".")
	if !ok || digits == "" || len(digits) > 100 || strings.Trim(digits, "0123456789") != "" {
		return nil, false
	}
	return new(big.Int).SetString(digits, 10)
}

// hashID makes an ID of fields.
func hashID(domain string, fields ...[]byte) scep.ID {
	h := sha256.New()
	h.Write([]byte(domain))
	for _, f := range fields {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(f))))
		h.Write(f)
	}
	return scep.ID(hex.EncodeToString(h.Sum(nil)))
}
