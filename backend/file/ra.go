package file

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/internal/custody"
	"github.com/scepkit/scepkit/scep"
)

// RAOptions say what [RA] makes. The zero RAOptions is usable.
type RAOptions struct {
	// KeyBits is the size of the RSA key: 2048, 3072 or 4096. If zero, a new key has 2048 and
	// any size of an old one will do.
	KeyBits int

	// Validity is how long a new certificate is valid from now on, if the CA's does not end
	// before that; at least an hour. If zero, 365 days.
	Validity time.Duration

	// Time returns the current time. If nil, time.Now is used.
	Time func() time.Time
}

// ignoreAfter is how long after its end an RA certificate is still returned in past.
const ignoreAfter = 90 * 24 * time.Hour

// RA returns the identity that opens requests and signs replies for ca, for [scep.Config].RA:
// an RSA key and a certificate that ca has issued for it, followed by ca's chain. It is kept in
// dir, which belongs to one CA; RA makes dir if need be. Use it where the CA's key cannot
// decrypt, or should not be asked to by strangers.
//
// If there is none, or less than a third of its life is left, or the CA has another key or name
// than the one that issued it, RA makes a new one. All others are returned in past, newest
// first, for [scep.Config].PastRA: devices go on using the certificate that they were given. A
// certificate that ended more than 90 days ago is left out. Files are never deleted.
//
// A new identity is in past, too, for its first day (or a sixth of its life, or of that of the one
// before it, if that is less), and ra is the one before it as long as that will do: so every process
// can open what is sealed to the new one before any of them announces it.
//
// Call RA at every start, and once an hour after that (once in a tenth of Validity, if that is below
// six hours), and make a new handler when ra or past is another. Several processes may use one dir,
// also at the same moment: they get the same identities. Processes on several machines need the
// same ones: have them share dir, or keep the key in a token that all reach (see [backend.RA]).
//
// Each file, ra-NUMBER.pem with mode 0600, has one key and its certificates; [Open] opens it.
// A file that cannot be read is an error, and no new identity is made in its place. The
// certificate is not in any depot.
func RA(ctx context.Context, ca scep.CA, dir string, o RAOptions) (ra *scep.Identity, past []*scep.Identity, err error) {
	switch o.KeyBits {
	case 0, 2048, 3072, 4096:
	default:
		return nil, nil, fmt.Errorf("file: RAOptions.KeyBits is %d; use 2048, 3072 or 4096: %w", o.KeyBits, backend.ErrUnsupported)
	}
	if o.Time == nil {
		o.Time = time.Now
	}
	now := o.Time() // one for all that follows
	options := backend.RAOptions{Validity: o.Validity, Time: func() time.Time { return now }}
	if _, err := backend.RADue(nil, nil, options); err != nil { // without a certificate one is due, if the options are right
		return nil, nil, fmt.Errorf("file: %w", err)
	}
	chain, err := ca.Chain(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("file: RA: asking the CA for its chain: %w", err)
	}
	if err := custody.CheckCA(chain, now); err != nil {
		return nil, nil, fmt.Errorf("file: RA: %w", err)
	}
	r := &raDir{dir: dir, ca: ca, chain: chain, bits: o.KeyBits, o: options, now: now, link: os.Link}
	if err := r.prepare(); err != nil {
		return nil, nil, err
	}

	// A new generation has the number after the greatest, and of all who make that file one
	// succeeds. The others look again, and find it. Nothing is locked, so a crash leaves
	// nothing locked.
	for range 10 {
		gens, err := r.read(ctx)
		if err != nil {
			return nil, nil, err
		}
		i, err := r.choose(gens)
		if err != nil {
			return nil, nil, err
		}
		if i >= 0 {
			ra = &scep.Identity{Certificates: append(gens[i].id.Certificates[:1:1], chain...), Key: gens[i].id.Key}
			for j, g := range gens {
				if j != i && r.now.Before(g.id.Certificate().NotAfter.Add(ignoreAfter)) {
					past = append(past, g.id)
				}
			}
			return ra, past, nil
		}
		next := uint64(1)
		if len(gens) > 0 {
			next = gens[0].number + 1
		}
		if err := r.issue(ctx, next); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("file: RA: others keep making certificates in %q that do not do here; use one directory for one CA, and the same options in all processes", dir)
}

// raDir is one call of RA.
type raDir struct {
	dir   string
	ca    scep.CA
	chain []*x509.Certificate
	bits  int // RAOptions.KeyBits
	o     backend.RAOptions
	now   time.Time
	link  func(from, to string) error // as custody.WriteNew has it
}

// A generation is a file in the directory.
type generation struct {
	number uint64
	id     *scep.Identity
}

// prepare makes the directory, or checks it.
func (r *raDir) prepare() error {
	err := os.Mkdir(r.dir, 0o700)
	if err == nil {
		err = custody.SyncDir(filepath.Dir(r.dir))
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("file: RA: making the directory: %w", err)
	}
	info, err := os.Stat(r.dir)
	switch {
	case err != nil:
		return fmt.Errorf("file: RA: %w", err)
	case !info.IsDir():
		return fmt.Errorf("file: RA: %q is not a directory; name another", r.dir)
	case runtime.GOOS != "windows" && info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("file: RA: others may write to the directory %q (mode %04o); run `chmod 700 %s`", r.dir, info.Mode().Perm(), r.dir)
	}
	return nil
}

func (r *raDir) name(number uint64) string {
	return filepath.Join(r.dir, fmt.Sprintf("ra-%06d.pem", number))
}

// read returns the generations there are, newest first.
func (r *raDir) read(ctx context.Context) ([]generation, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, fmt.Errorf("file: RA: %w", err)
	}
	var gens []generation
	for _, e := range entries {
		middle, ok := strings.CutPrefix(e.Name(), "ra-")
		middle, ok2 := strings.CutSuffix(middle, ".pem")
		number, err := strconv.ParseUint(middle, 10, 32)
		if !ok || !ok2 || err != nil || e.Name() != filepath.Base(r.name(number)) {
			continue
		}
		id, err := r.open(ctx, r.name(number))
		if err != nil {
			return nil, err
		}
		gens = append(gens, generation{number, id})
	}
	slices.SortFunc(gens, func(a, b generation) int { return cmp.Compare(b.number, a.number) })
	return gens, nil
}

// open opens one generation.
func (r *raDir) open(ctx context.Context, name string) (*scep.Identity, error) {
	// Without links (see custody.WriteNew) a file is empty for a moment.
	for range 20 {
		info, err := os.Stat(name)
		if err != nil {
			return nil, fmt.Errorf("file: RA: %w", err)
		}
		if info.Size() > 0 {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("file: RA: waiting for %q to be written: %w", name, ctx.Err())
		}
	}
	id, err := Open(name, name)
	if err != nil {
		return nil, fmt.Errorf("file: RA: opening what was made before: %w; put the file right, or if that is impossible move it away", err)
	}
	if _, ok := id.Key.(*rsaKey); !ok {
		return nil, fmt.Errorf("file: RA: the key in %q cannot decrypt; move the file away: %w", name, backend.ErrUnsupported)
	}
	return id, nil
}

// choose returns the index of the generation to use, or -1 if a new one is to be made.
func (r *raDir) choose(gens []generation) (int, error) {
	var certs []*x509.Certificate
	for _, g := range gens {
		certs = append(certs, g.id.Certificate())
	}
	for i, cert := range certs {
		if r.bits != 0 && cert.PublicKey.(*rsa.PublicKey).N.BitLen() != r.bits {
			continue
		}
		due, err := backend.RADue(cert, r.chain[0], r.o)
		if err != nil {
			return 0, fmt.Errorf("file: %w", err)
		}
		if !due {
			return i + custody.InUse(certs[i:], r.chain[0], r.now), nil
		}
	}
	return -1, nil
}

// issue makes a generation. If another made it first, the error wraps fs.ErrExist.
func (r *raDir) issue(ctx context.Context, number uint64) error {
	bits := r.bits
	if bits == 0 {
		bits = 2048
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("file: RA: %w", err)
	}
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return fmt.Errorf("file: RA: making a key: %w", err)
	}
	cert, err := backend.IssueRA(ctx, r.ca, key.Public(), r.o)
	if err != nil {
		return fmt.Errorf("file: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	data := append(keyPEM, encodeCerts(append([]*x509.Certificate{cert}, r.chain...)...)...)
	if err := custody.WriteNew(r.name(number), data, 0o600, r.link); err != nil {
		return fmt.Errorf("file: RA: %w", err)
	}
	return nil
}
