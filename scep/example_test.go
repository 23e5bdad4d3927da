package scep_test

import (
	"context"
	"crypto/x509"
	"expvar"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/challenge"
	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/sqlite"
	"github.com/scepkit/scepkit/scep"
)

// A server with its CA in files and its records in SQLite. A program opens a CA that it has
// with file.Open.
func ExampleNew() {
	dir, remove := tempDir()
	defer remove()

	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	db, err := sqlite.Open(filepath.Join(dir, "scep.db"))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	handler, err := scep.New(scep.Config{
		CA:        ca,
		Depot:     db,
		Challenge: challenge.Static("correct-horse-battery-staple"),
		Renewal:   scep.Renewal{On: true},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	mux := http.NewServeMux()
	mux.Handle("/scep", handler)
	mux.Handle("/scep/", handler)

	server := httptest.NewServer(mux)
	defer server.Close()
	resp, err := http.Get(server.URL + "/scep/pkiclient.exe?operation=GetCACaps")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	caps, _ := io.ReadAll(resp.Body)
	fmt.Println(strings.Fields(string(caps)))
	// Output: [AES POSTPKIOperation SHA-256 SHA-384 SHA-512 SCEPStandard Renewal]
}

// A profile that admits only names under one domain, for servers as well as clients.
func ExampleProfile() {
	_ = scep.Config{
		// CA, Depot, Challenge ...
		Policy: &scep.Profile{
			Validity:    90 * 24 * time.Hour,
			SAN:         scep.SANDNS,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
			Change: func(ctx context.Context, req *scep.Request, tmpl *x509.Certificate) error {
				for _, name := range tmpl.DNSNames {
					if !strings.HasSuffix(name, ".fleet.example") {
						return scep.Reject(scep.BadRequest, name+" is not ours")
					}
				}
				return nil
			},
		},
	}
}

// A person decides: the challenge puts requests aside, and a page or a command of yours lists
// them and calls Approve or Deny.
func ExampleHandler_Approve() {
	dir, remove := tempDir()
	defer remove()
	ca, err := file.CreateCA(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key"), file.CAOptions{})
	if err != nil {
		fmt.Println(err)
		return
	}
	records := &depot.Memory{}
	handler, err := scep.New(scep.Config{
		CA:    ca,
		Depot: records,
		Challenge: scep.ChallengeFunc(func(ctx context.Context, req *scep.Request) error {
			return scep.ErrPending
		}),
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	waiting, err := records.List(ctx, scep.Query{State: scep.Pending})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, rec := range waiting {
		if _, err := handler.Approve(ctx, rec.ID, scep.Decision{By: "alice", Remark: "asset 4711"}); err != nil {
			fmt.Println(err)
		}
	}
	fmt.Println(len(waiting), "requests were waiting")
	// Output: 0 requests were waiting
}

// Counting outcomes. A metrics library goes here, and nowhere else.
func ExampleEvents() {
	outcomes := new(expvar.Map).Init()
	_ = scep.Config{
		// CA, Depot, Challenge ...
		Events: scep.Events{
			Issued:  func(ctx context.Context, e scep.Event) { outcomes.Add(string(e.Reason), 1) },
			Refused: func(ctx context.Context, e scep.Event) { outcomes.Add(string(e.Reason), 1) },
		},
	}
}

// Secrets do not print.
func ExampleSecret() {
	pin := scep.NewSecret("123456")
	fmt.Printf("%v %+v %q %s\n", pin, struct{ PIN scep.Secret }{pin}, pin, slog.AnyValue(pin).Resolve())
	// Output: [redacted] {PIN:[redacted]} [redacted] [redacted]
}

func tempDir() (dir string, remove func()) {
	dir, err := os.MkdirTemp("", "scep")
	if err != nil {
		panic(err)
	}
	return dir, func() { os.RemoveAll(dir) }
}
