// Package serve is what the example servers have in common: all but where their keys are.
package serve

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// A Program is an example server.
type Program struct {
	Name string // what it is called
	Dir  string // the folder it keeps things in, unless -dir names another

	// Keys opens the keys, or makes them.
	Keys func(ctx context.Context, o Options) (*Keys, error)
}

// Options say which keys.
type Options struct {
	Dir   string
	CAKey backend.KeyType // of a CA that is made
	Log   *slog.Logger
}

// Keys are what a server signs and decrypts with.
type Keys struct {
	CA, RA *scep.Identity // RA is nil if the CA can do without
	PastRA []*scep.Identity

	// Where says for people where the keys are.
	Where []backend.Attribute

	// Check, if not nil, reports whether the keys can be used now; /readyz then says so.
	Check func(ctx context.Context) error

	// Close, if not nil, ends the use of the keys.
	Close func() error
}

type flags struct {
	addr, dir, challenge, caKey string
	legacy, renewAlways, memory bool
	hold                        time.Duration
}

// Main adds flags to those of the program, parses them, serves until the program is interrupted,
// and exits.
func Main(p Program) {
	var o flags
	flag.StringVar(&o.addr, "addr", "127.0.0.1:8080", "listen on this `address`")
	flag.StringVar(&o.dir, "dir", p.Dir, "keep what the server needs, as challenge and database, in this `folder`")
	flag.StringVar(&o.challenge, "challenge", "", "admit who knows this `secret`, in place of the one in the folder")
	flag.StringVar(&o.caKey, "ca-key", "rsa2048", "`kind` of key for a CA that is made: rsa2048, rsa3072, rsa4096, p256, p384 or ed25519")
	flag.BoolVar(&o.legacy, "legacy", false, "admit Triple DES and SHA-1, and open requests in single DES")
	flag.BoolVar(&o.renewAlways, "renew-always", false, "renew certificates at any time, not only in the last third of their life")
	flag.DurationVar(&o.hold, "hold", 0, "let each new request wait this long for approval, to see how a device polls")
	flag.BoolVar(&o.memory, "memory", false, "forget what was issued when the program ends: no database")
	flag.Parse()
	switch {
	case flag.NArg() > 0:
		fmt.Fprintf(os.Stderr, "%s: takes flags only, no %q; -h shows them\n", p.Name, flag.Arg(0))
		os.Exit(2)
	case o.hold < 0:
		fmt.Fprintf(os.Stderr, "%s: -hold is 0 or more\n", p.Name)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := p.run(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", p.Name, err)
		os.Exit(1)
	}
}

func (p Program) run(ctx context.Context, o flags) (err error) {
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	kind, err := backend.ParseKeyType(o.caKey)
	if err != nil {
		return fmt.Errorf("-ca-key: %w", err)
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
		Depot:     records,
		Challenge: challenge.Static(secret),
		Renewal:   scep.Renewal{On: true, Anytime: o.renewAlways},
		Log:       log,
	}
	if o.legacy {
		c.Legacy = scep.TripleDES | scep.SHA1 | scep.SingleDES
	}
	if o.hold > 0 {
		c.Policy = heldBack{&scep.Profile{}}
	}
	s := &service{program: p, options: Options{Dir: o.dir, CAKey: kind, Log: log}, config: c}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx); err != nil {
		return err
	}

	listener, err := net.Listen("tcp", o.addr)
	if err != nil {
		return fmt.Errorf("%w; give another -addr", err)
	}
	server := &http.Server{
		Handler:           s.pages(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	ctx, cancel := context.WithCancel(ctx)
	var beside sync.WaitGroup
	defer beside.Wait() // before the keys and the depot are closed
	defer cancel()
	beside.Go(func() { s.renew(ctx) })
	if o.hold > 0 {
		beside.Go(func() { approve(ctx, &s.Switch, records.(scep.Lister), o.hold, log) })
	}
	greet(listener.Addr(), s.keys.Load(), secret, o)

	select {
	case err = <-served:
	case <-ctx.Done():
		fmt.Println("\nStopping: requests under way are finished first.")
		wait, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		err = server.Shutdown(wait)
	}
	return err
}

func openDepot(o flags) (records scep.Depot, closeDepot func() error, err error) {
	if o.memory {
		return &depot.Memory{}, func() error { return nil }, nil
	}
	db, err := sqlite.Open(filepath.Join(o.dir, "scep.db"))
	if err != nil {
		return nil, nil, err
	}
	return db, db.Close, nil
}

// pages serves SCEP at /scep and any path below it, and never redirects: SCEP clients do not
// follow. If the keys have a Check, /readyz has what it says.
func (s *service) pages() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		check := s.keys.Load().Check
		switch p := path.Clean("/" + r.URL.Path); {
		case p == "/scep" || strings.HasPrefix(p, "/scep/"):
			s.ServeHTTP(w, r)
		case p == "/readyz" && check != nil:
			ready(w, r, check)
		default:
			http.NotFound(w, r)
		}
	})
}

// ready answers 200 if the keys can be used now, and otherwise 503 and why not.
func ready(w http.ResponseWriter, r *http.Request, check func(context.Context) error) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if err := check(ctx); err != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		fmt.Fprintln(w, err)
		return
	}
	fmt.Fprintln(w, "ready")
}
