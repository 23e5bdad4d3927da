// Quickstart is a SCEP server to try. The first run makes a CA and a challenge and keeps them
// in a folder with a database of what it issues; later runs use them again.
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

type options struct {
	addr, dir, challenge, caKey string
	legacy, renewAlways, memory bool
	hold                        time.Duration
}

func main() {
	var o options
	flag.StringVar(&o.addr, "addr", "127.0.0.1:8080", "listen on this `address`")
	flag.StringVar(&o.dir, "dir", "scep-data", "keep CA, challenge and database in this `folder`")
	flag.StringVar(&o.challenge, "challenge", "", "admit who knows this `secret`, in place of the one in the folder")
	flag.StringVar(&o.caKey, "ca-key", "rsa2048", "`kind` of key for a CA that is made: rsa2048, rsa3072, rsa4096, p256 or p384")
	flag.BoolVar(&o.legacy, "legacy", false, "admit Triple DES and SHA-1, and open requests in single DES")
	flag.BoolVar(&o.renewAlways, "renew-always", false, "renew certificates at any time, not only in the last third of their life")
	flag.DurationVar(&o.hold, "hold", 0, "let each new request wait this long for approval, to see how a device polls")
	flag.BoolVar(&o.memory, "memory", false, "forget what was issued when the program ends: no database")
	flag.Parse()
	if flag.NArg() > 0 || o.hold < 0 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	ca, ra, past, err := identities(ctx, o)
	if err != nil {
		return err
	}
	secret, err := secret(o)
	if err != nil {
		return err
	}
	records, closeDepot, err := openDepot(o)
	if err != nil {
		return err
	}
	defer closeDepot()

	c := scep.Config{
		CA:        ca,
		RA:        ra,
		PastRA:    past,
		Depot:     records,
		Challenge: challenge.Static(secret),
		Renewal:   scep.Renewal{On: true, Anytime: o.renewAlways},
		Log:       slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	if o.legacy {
		c.Legacy = scep.TripleDES | scep.SHA1 | scep.SingleDES
	}
	if o.hold > 0 {
		c.Policy = heldBack{&scep.Profile{}}
	}
	handler, err := scep.New(c)
	if err != nil {
		return err
	}

	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return err
	}
	server := &http.Server{
		Handler:           under("/scep", handler),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	approved := make(chan struct{})
	go func() {
		defer close(approved)
		if o.hold > 0 {
			approve(ctx, handler, records.(scep.Lister), o.hold, c.Log)
		}
	}()
	greet(listener.Addr(), ca, secret, o)

	select {
	case err = <-served:
	case <-ctx.Done():
		fmt.Println("\nStopping: requests under way are finished first.")
		wait, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = server.Shutdown(wait)
		<-approved
	}
	return err
}

// identities opens the CA in the folder, or makes one, and the RA that a CA needs whose key
// cannot decrypt.
func identities(ctx context.Context, o options) (ca, ra *scep.Identity, past []*scep.Identity, err error) {
	kind, err := backend.ParseKeyType(o.caKey)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("-ca-key: %w", err)
	}
	chain, key := filepath.Join(o.dir, "ca.pem"), filepath.Join(o.dir, "ca.key")
	if _, err = os.Stat(chain); errors.Is(err, fs.ErrNotExist) {
		ca, err = file.CreateCA(chain, key, file.CAOptions{KeyType: kind})
	} else {
		ca, err = file.Open(chain, key)
	}
	if err != nil {
		return nil, nil, nil, err
	}
	if _, ok := ca.Key.(scep.Unwrapper); !ok {
		ra, past, err = file.RA(ctx, ca, o.dir, file.RAOptions{})
	}
	return ca, ra, past, err
}

// secret returns the challenge, from the flag or from the folder, where the first run puts one.
func secret(o options) (string, error) {
	if o.challenge != "" {
		return o.challenge, nil
	}
	name := filepath.Join(o.dir, "challenge")
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(name); err != nil {
			return "", err
		} else if runtime.GOOS != "windows" && info.Mode().Perm()&0o077 != 0 {
			return "", fmt.Errorf("%s can be read by others; chmod 600 %s, and think of a new challenge", name, name)
		}
		if s := strings.TrimSpace(string(text)); s != "" {
			return s, nil
		}
		return "", fmt.Errorf("%s is empty; remove it to have a challenge made", name)
	}
	if err != nil {
		return "", err
	}
	s := rand.Text()
	if _, err = fmt.Fprintln(f, s); err == nil {
		err = f.Sync()
	}
	if closing := f.Close(); err == nil {
		err = closing
	}
	return s, err
}

func openDepot(o options) (records scep.Depot, closeDepot func() error, err error) {
	if o.memory {
		return &depot.Memory{}, func() error { return nil }, nil
	}
	db, err := sqlite.Open(filepath.Join(o.dir, "scep.db"))
	if err != nil {
		return nil, nil, err
	}
	return db, db.Close, nil
}

// under serves h at prefix and any path below it, and never redirects: SCEP clients do not
// follow.
func under(prefix string, h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := path.Clean("/" + r.URL.Path); p == prefix || strings.HasPrefix(p, prefix+"/") {
			h.ServeHTTP(w, r)
			return
		}
		http.NotFound(w, r)
	})
}

// heldBack is a policy that waits for approval.
type heldBack struct{ *scep.Profile }

func (p heldBack) Template(ctx context.Context, req *scep.Request) (*x509.Certificate, error) {
	tmpl, err := p.Profile.Template(ctx, req)
	if err == nil && !req.Approved {
		err = scep.ErrPending
	}
	return tmpl, err
}

// approve approves each request that has waited long enough.
func approve(ctx context.Context, h *scep.Handler, l scep.Lister, hold time.Duration, log *slog.Logger) {
	tick := time.NewTicker(min(hold, time.Second/4))
	defer tick.Stop()
	failed := map[scep.ID]time.Time{} // when approving them last failed
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		var last scep.ID
		for {
			page, err := l.List(ctx, scep.Query{State: scep.Pending, After: last})
			if err != nil && ctx.Err() == nil {
				log.Error("listing requests that wait", slog.Any("error", err))
			}
			if len(page) == 0 {
				break
			}
			for _, rec := range page {
				if last = rec.ID; time.Since(rec.Created) < hold || time.Since(failed[rec.ID]) < time.Minute {
					continue
				}
				if _, err := h.Approve(ctx, rec.ID); err != nil {
					failed[rec.ID] = time.Now()
					log.Error("approving", slog.String("record", string(rec.ID)), slog.Any("error", err))
				}
			}
		}
	}
}

// greet says how to try the server.
func greet(addr net.Addr, ca *scep.Identity, secret string, o options) {
	host := addr.String()
	if tcp, ok := addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		host = fmt.Sprintf("127.0.0.1:%d", tcp.Port)
	}
	url := "http://" + host + "/scep"
	sum := sha256.Sum256(ca.Certificate().Raw)
	fmt.Printf(`SCEP server is ready.

  URL          %s
  fingerprint  %x
  challenge    %s
  data         %s

Try it from another terminal:

  go run ./examples/enroll enroll -url %s \
    -fingerprint %x \
    -challenge %s -cn device-1 -out device-1
`, url, sum, secret, o.dir, url, sum, secret)
	if o.legacy {
		fmt.Printf(`
Or, because -legacy is on, with Debian's scep package:

  scepclient -server-url %s -challenge %s -cn device-2 \
    -private-key device-2.key -certificate device-2.pem
`, url, secret)
	}
	fmt.Println()
}
