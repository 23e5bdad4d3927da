package main

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/scep"
)

const (
	schema      = "scep_cluster"         // of the tables
	urlVariable = "CLUSTER_DATABASE_URL" // not a flag: the URL may have a password in it

	// Each replica has so many connections. An enrolment holds one for some milliseconds, so
	// that few are enough; with those of all replicas, and some for people, they must stay
	// below max_connections of the server.
	connections = 8

	// So many requests may be under way in a replica. The next is told to come back: better
	// than to wait for longer than its client does.
	requests = 128
)

func replicaCommand(ctx context.Context, args []string) error {
	set := flag.NewFlagSet("replica", flag.ContinueOnError)
	number := set.Int("number", 0, "for the log")
	dir := set.String("data", "", "folder")
	busy := set.Int("busy", 0, "percent")
	if err := set.Parse(args); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil)).With(slog.Int("replica", *number))
	return serve(ctx, *dir, os.Getenv(urlVariable), *busy, log)
}

// serve is one replica, until ctx ends. All replicas have the same keys, the same challenge and
// the same database; they know nothing of one another. They look for a newer RA when they start,
// and it takes over at the first start a day after it was made; those that have not been started
// since it was made cannot open what is sealed to it. So a server that stays up looks once an hour,
// as examples/internal/serve does.
func serve(ctx context.Context, dir, url string, busy int, log *slog.Logger) error {
	ca, err := file.Open(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"))
	if err != nil {
		return err
	}
	ra, past, err := file.RA(ctx, ca, dir, file.RAOptions{})
	if err != nil {
		return err
	}
	static, err := os.ReadFile(filepath.Join(dir, "challenge"))
	if err != nil {
		return err
	}
	db, err := openDepot(ctx, postgres.Config{URL: url, Schema: schema, MaxConns: connections, Log: log})
	if err != nil {
		return err
	}
	defer db.Close()

	handler, err := scep.New(scep.Config{
		CA:     busyCA{ca, busy},
		RA:     ra,
		PastRA: past,
		Depot:  db,
		Challenge: challenge.Any(
			&challenge.OneTime{Store: db}, // spent in the same database
			challenge.Static(strings.TrimSpace(string(static))),
		),
		Renewal: scep.Renewal{On: true, Anytime: true}, // the devices here cannot wait for months
		Limits:  scep.Limits{Requests: requests},
		Log:     log,
	})
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.Handle("/scep", handler)
	mux.Handle("/scep/", handler)
	mux.Handle("GET /readyz", readiness(ctx, db))
	server := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	fmt.Println(listener.Addr()) // for who has started it

	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	// A balancer that asks /readyz from time to time must be given that time here, before the
	// port is closed. The one in proxy.go goes on to the next replica by itself.
	wait, cancel := context.WithTimeout(context.Background(), 40*time.Second) // a request takes 30 at most
	defer cancel()
	return server.Shutdown(wait)
}

// openDepot waits for the database: a replica that is started while it is away must not give up.
func openDepot(ctx context.Context, c postgres.Config) (*postgres.DB, error) {
	for told := false; ; {
		db, err := postgres.Open(ctx, c)
		if err == nil || ctx.Err() != nil {
			return db, err
		}
		if !told && c.Log != nil {
			told = true
			c.Log.Warn("waiting for the database", slog.Any("error", err))
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// readiness answers 200 as long as the replica should be sent requests: its database answers, and
// it is not about to end.
func readiness(life context.Context, d scep.Depot) http.Handler {
	nobody := scep.ID(strings.Repeat("0", 64))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := d.Get(r.Context(), nobody)
		if errors.Is(err, scep.ErrNotFound) {
			err = life.Err()
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ready")
	})
}

// A busyCA is a CA whose key is busy now and then, as one in a token that others use too. The
// device is told to poll, and whichever replica it asks then has the certificate made.
type busyCA struct {
	*scep.Identity
	percent int
}

func (b busyCA) Sign(ctx context.Context, tmpl *x509.Certificate, pub crypto.PublicKey) (*x509.Certificate, error) {
	if rand.IntN(100) < b.percent {
		return nil, errors.New("cluster: the key is busy, because of -busy")
	}
	return b.Identity.Sign(ctx, tmpl, pub)
}
