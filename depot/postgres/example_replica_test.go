package postgres_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/scep"
	"github.com/scepkit/scepkit/scep/status"
)

// A replica is one of several servers of a CA: SCEP with one-time challenges, an approval queue,
// CRL, OCSP, revocation, and what is to be done now and then. All replicas have the same database and the same
// keys, and know nothing of one another.
type replica struct {
	dir     string // with ca.pem, ca.key, and the RA
	shared  string // the challenge of devices that are to wait for a person
	base    string // the URL of all replicas together, without a slash at the end
	db      *postgres.DB
	ca      *scep.Identity
	oneTime *challenge.OneTime
	crl     *status.CRL
	ocsp    *status.OCSP
	scep    scep.Switch
	ras     []*scep.Identity // of the handler in scep, that in use first
}

// newReplica opens the database and the keys. The caller closes r.db.
func newReplica(ctx context.Context, database, dir, shared, base string) (r *replica, err error) {
	r = &replica{dir: dir, shared: shared, base: base}
	if r.ca, err = file.Open(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")); err != nil {
		return nil, err
	}
	if r.db, err = postgres.Open(ctx, postgres.Config{URL: database, Log: slog.Default()}); err != nil {
		return nil, err
	}
	r.oneTime = &challenge.OneTime{Store: r.db, Limit: 10000}
	if err = r.status(); err == nil {
		err = r.renewRA(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.db.Close())
	}
	return r, nil
}

// status makes the CRL and the OCSP responder. The key of the latter lives as long as the process.
func (r *replica) status() (err error) {
	if r.crl, err = status.NewCRL(status.CRLConfig{Issuer: r.ca, Depot: r.db, URL: r.base + "/crl/ca.crl"}); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	r.ocsp, err = status.NewOCSP(status.OCSPConfig{
		Issuer: r.ca.Certificate(), Depot: r.db,
		Renew: func(ctx context.Context) (*scep.Identity, error) {
			cert, err := status.IssueResponder(ctx, r.ca, key.Public(), status.ResponderOptions{})
			return &scep.Identity{Certificates: []*x509.Certificate{cert}, Key: key}, err
		},
	})
	return err
}

// renewRA serves with the RAs of now. Once in eight months there is a new one, in past for its
// first day, so that all replicas can open what devices seal to it before one announces it.
func (r *replica) renewRA(ctx context.Context) error {
	ra, past, err := file.RA(ctx, r.ca, filepath.Join(r.dir, "ra"), file.RAOptions{})
	if err != nil {
		return err
	}
	ras := append([]*scep.Identity{ra}, past...)
	if slices.EqualFunc(r.ras, ras, func(a, b *scep.Identity) bool { return a.Certificate().Equal(b.Certificate()) }) {
		return nil
	}
	ask := scep.ChallengeFunc(func(context.Context, *scep.Request) error { return scep.ErrPending })
	h, err := scep.New(scep.Config{
		CA: r.ca, RA: ra, PastRA: past, Depot: r.db, CRL: r.crl,
		// Not just anybody is to fill the queue, so who waits has a challenge, too.
		Challenge: challenge.Any(r.oneTime, challenge.All(challenge.Static(r.shared), ask)),
		Policy:    &scep.Profile{OCSPServer: []string{r.base + "/ocsp"}},
		Renewal:   scep.Renewal{On: true, Grace: 7 * 24 * time.Hour},
	})
	if err == nil {
		r.scep.Set(h)
		r.ras = ras
	}
	return err
}

// work does what a CA needs now and then, until ctx ends.
func (r *replica) work(ctx context.Context) {
	keep := depot.Retention{Expired: 90 * 24 * time.Hour, Denied: 30 * 24 * time.Hour}
	hour, day := time.NewTicker(time.Hour), time.NewTicker(24*time.Hour)
	defer hour.Stop()
	defer day.Stop()
	for {
		var err error
		select {
		case <-hour.C:
			err = r.renewRA(ctx)
		case <-day.C:
			_, expiring := r.scep.Handler().Expire(ctx)
			_, pruning := keep.Prune(ctx, r.db)
			err = errors.Join(expiring, pruning)
		case <-ctx.Done():
			return
		}
		if err != nil && ctx.Err() == nil {
			slog.Error("work", slog.Any("error", err)) // and again the next time
		}
	}
}

// ServeHTTP is for devices, and for those who rely on their certificates. A http.ServeMux would
// redirect some of their paths, and many of them do not follow.
func (r *replica) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	switch first, _, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, "/"), "/"); first {
	case "scep":
		r.scep.ServeHTTP(w, req)
	case "crl":
		r.crl.ServeHTTP(w, req)
	case "ocsp":
		r.ocsp.ServeHTTP(w, req)
	case "readyz": // for a balancer: an ID that nobody has
		if _, err := r.db.Get(req.Context(), scep.ID(strings.Repeat("0", 64))); !errors.Is(err, scep.ErrNotFound) {
			http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
		}
	default:
		http.NotFound(w, req)
	}
}

// admin is for people, and for the MDM. Serve it elsewhere, behind a login that sets X-User.
func (r *replica) admin() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(w http.ResponseWriter, req *http.Request, d scep.Decision) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, req *http.Request) {
			if err := f(w, req, scep.Decision{By: req.Header.Get("X-User"), Remark: req.FormValue("why")}); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	handle("POST /challenge", func(w http.ResponseWriter, req *http.Request, _ scep.Decision) error {
		secret, err := r.oneTime.New(req.Context(), challenge.Binding{Subject: req.FormValue("subject")})
		if err == nil {
			fmt.Fprintln(w, secret.Reveal())
		}
		return err
	})
	handle("GET /waiting", func(w http.ResponseWriter, req *http.Request, _ scep.Decision) error {
		page, err := r.db.List(req.Context(), scep.Query{State: scep.Pending, After: scep.ID(req.FormValue("after"))})
		for _, rec := range page {
			csr, err := x509.ParseCertificateRequest(rec.CSR)
			if err != nil {
				return err
			}
			fmt.Fprintf(w, "%s %s %q\n", rec.ID, rec.Created.Format(time.RFC3339), csr.Subject)
		}
		return err
	})
	handle("POST /approve/{id}", func(w http.ResponseWriter, req *http.Request, d scep.Decision) error {
		_, err := r.scep.Handler().Approve(req.Context(), scep.ID(req.PathValue("id")), d)
		return err
	})
	handle("POST /deny/{id}", func(w http.ResponseWriter, req *http.Request, d scep.Decision) error {
		return r.scep.Handler().Deny(req.Context(), scep.ID(req.PathValue("id")), nil, d)
	})
	handle("POST /revoke/{serial}", func(w http.ResponseWriter, req *http.Request, d scep.Decision) error {
		serial, ok := new(big.Int).SetString(req.PathValue("serial"), 16)
		if !ok {
			return errors.New("the serial number is not hexadecimal")
		}
		return r.scep.Handler().RevokeSerial(req.Context(), serial, scep.KeyCompromise, d)
	})
	return mux
}

// A server that can be one of many.
func Example_replica() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	r, err := newReplica(ctx, os.Getenv("SCEP_DATABASE"), "/etc/scep", os.Getenv("SCEP_CHALLENGE"), "http://pki.example.com")
	if err != nil {
		slog.Error("starting", slog.Any("error", err))
		return
	}
	defer r.db.Close()
	var all sync.WaitGroup
	defer all.Wait() // before the database is closed
	all.Go(func() { r.work(ctx) })
	for addr, handler := range map[string]http.Handler{":8080": r, "127.0.0.1:8081": r.admin()} {
		server := &http.Server{Addr: addr, Handler: handler, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
		all.Go(func() {
			defer stop() // one does not go on without the other
			slog.Info("serving", slog.Any("error", server.ListenAndServe()))
		})
		all.Go(func() {
			<-ctx.Done()
			wait, cancel := context.WithTimeout(context.Background(), 40*time.Second) // a request takes 30 at most
			defer cancel()
			server.Shutdown(wait)
		})
	}
}
