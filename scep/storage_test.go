//go:build unix

package scep_test

import (
	"database/sql"
	"errors"
	"fmt"
	"net/http"
	neturl "net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/scepkit/scepkit/depot"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
)

const (
	// prompt is how soon a request is answered, whatever the depot does.
	prompt = 2 * time.Second

	// healed is how soon after a repair the same handler enrols again.
	healed = 5 * time.Second
)

// An outage is a depot that cannot be written to, in one way.
type outage struct {
	name  string
	begin func(t *testing.T)
	end   func(t *testing.T)
	some  bool // writes may go on while there is room for a few
}

// A pace measures how long answers take, and how long the like takes with a depot that is never
// away: what a machine that has no time for us adds.
type pace struct {
	slowest, idle atomic.Int64 // time.Duration
	stop          chan struct{}
	done          sync.WaitGroup
}

func newPace(t *testing.T) *pace {
	p := &pace{stop: make(chan struct{})}
	m := &depot.Memory{}
	f := newFleet(t, m, nil)
	h := newCheap(t).handler(t, m)
	p.done.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-p.stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			e, err := f.enrolment(fmt.Sprint("pace ", n))
			if err != nil {
				t.Error(err)
				return
			}
			begun := time.Now()
			if a := e.send(t, h, e.pkcsReq(t, f.to), f.from); a.cert == nil {
				t.Error(a)
			}
			raise(&p.idle, time.Since(begun))
		}
	})
	t.Cleanup(func() { close(p.stop); p.done.Wait() })
	return p
}

func raise(to *atomic.Int64, d time.Duration) {
	for {
		was := to.Load()
		if int64(d) <= was || to.CompareAndSwap(was, int64(d)) {
			return
		}
	}
}

// took holds an answer to prompt, and what a busy machine adds: at each of several steps as much as
// to a whole request that needs no depot.
func (p *pace) took(t *testing.T, d time.Duration) {
	raise(&p.slowest, d)
	if idle := time.Duration(p.idle.Load()); d > prompt+4*idle {
		if idle > prompt/4 {
			t.Logf("answered after %v, where what needs no depot takes %v", d, idle)
			return
		}
		t.Errorf("answered after %v, want %v", d, prompt)
	}
}

// endure has a handler over s answer while there is an outage, and after it, one after the other.
func endure(t *testing.T, s store, outages ...outage) {
	p := newPace(t)
	h := newCheap(t).handler(t, s)
	f := newFleet(t, s, nil)
	for _, o := range outages {
		t.Run(o.name, func(t *testing.T) {
			f.t = t
			f.post = func(msg []byte) (*http.Response, error) {
				begun := time.Now()
				resp := respond(h, msg)
				p.took(t, time.Since(begun))
				return resp, nil
			}
			before := f.must(o.name + ": before")
			f.enrol(before)
			held := make([]*enrolment, 10)
			for i := range held {
				held[i] = f.must(fmt.Sprint(o.name, ": held ", i))
			}
			f.start(o.name, 4, 2)
			for issued, begun := f.issued.Load(), time.Now(); f.issued.Load() < issued+10; time.Sleep(time.Millisecond) {
				if time.Since(begun) > time.Minute {
					t.Fatal("nothing is issued before anything is broken")
				}
			}

			o.begin(t)
			var refused atomic.Int64
			for range 2 {
				var wg sync.WaitGroup
				for i, e := range held {
					msg := e.pkcsReq(t, f.to)
					for range 1 + i%2 { // half of them twice at once
						wg.Go(func() {
							done, err := f.ask(e, msg)
							if done && !o.some || errors.Is(err, errRefused) {
								t.Errorf("while it lasts: certificate %v, %v", done, err)
							}
							if err != nil {
								refused.Add(1)
							}
						})
					}
				}
				wg.Go(func() { // what needs no writing may be answered, and is the same
					if _, err := f.ask(before, before.pkcsReq(t, f.to)); errors.Is(err, errRefused) {
						t.Error(err)
					}
				})
				wg.Wait()
			}
			if refused.Load() == 0 {
				t.Error("nothing was refused")
			}
			o.end(t)
			begun := time.Now()
			f.enrol(held[0])
			took := time.Since(begun)
			if took > healed+time.Duration(p.idle.Load()) {
				t.Errorf("enrolled %v after the repair, want %v", took, healed)
			}
			for _, e := range held {
				f.enrol(e)
			}
			f.finish()
			t.Logf("enrolled %v after the repair; the slowest answer took %v, without a depot to wait for %v", took.Round(time.Millisecond),
				time.Duration(p.slowest.Swap(0)).Round(time.Millisecond), time.Duration(p.idle.Load()).Round(time.Millisecond))
		})
	}
}

// must makes an enrolment.
func (f *fleet) must(name string) *enrolment {
	f.t.Helper()
	e, err := f.enrolment(name)
	if err != nil {
		f.t.Fatal(err)
	}
	return e
}

// TestStorageSQLite takes the file away from a handler in several ways, and gives it back.
func TestStorageSQLite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "scep.db")
	s := openSQLite(t, path)
	var other *sql.DB
	endure(t, s, outage{
		name: "moved",
		begin: func(t *testing.T) {
			for _, file := range []string{path + "-shm", path + "-wal", path} {
				if err := os.Rename(file, file+".away"); err != nil {
					t.Fatal(err)
				}
			}
		},
		end: func(t *testing.T) {
			for _, file := range []string{path, path + "-wal", path + "-shm"} {
				if err := os.Rename(file+".away", file); err != nil {
					t.Fatal(err)
				}
			}
		},
	}, outage{
		name: "locked", // by a process that hangs
		begin: func(t *testing.T) {
			var err error
			if other, err = sql.Open("sqlite", path); err != nil {
				t.Fatal(err)
			}
			other.SetMaxOpenConns(1)
			for begun := time.Now(); ; time.Sleep(50 * time.Microsecond) { // between two commits
				if _, err := other.Exec("BEGIN IMMEDIATE"); err == nil {
					return
				} else if time.Since(begun) > time.Minute {
					t.Fatal(err)
				}
			}
		},
		end: func(t *testing.T) {
			if err := other.Close(); err != nil {
				t.Fatal(err)
			}
		},
	})
}

// TestStoragePostgres takes the database away from a handler in several ways, and gives it back.
func TestStoragePostgres(t *testing.T) {
	server := postgrestest.Start(t)
	url := server.Database(t)
	database := strings.TrimPrefix(must(neturl.Parse(url)).Path, "/")
	socket := filepath.Join(server.Dir(), ".s.PGSQL.5432")
	elsewhere := filepath.Join(server.Dir(), "elsewhere")
	if err := os.Mkdir(elsewhere, 0o755); err != nil {
		t.Fatal(err)
	}
	endure(t, openReplica(t, postgres.Config{URL: url}), []outage{
		{name: "paused", begin: func(t *testing.T) { server.Pause(t) }, end: func(t *testing.T) { server.Resume(t) }},
		{name: "stopped", begin: func(t *testing.T) { server.Stop(t) }, end: func(t *testing.T) { server.Start(t) }},
		{name: "killed", begin: func(t *testing.T) { server.Kill(t) }, end: func(t *testing.T) { server.Start(t) }},
		{name: "socket gone", begin: func(t *testing.T) {
			if err := os.Rename(socket, filepath.Join(elsewhere, filepath.Base(socket))); err != nil {
				t.Fatal(err)
			}
			c := must(pgx.Connect(t.Context(), strings.Replace(url, server.Dir(), elsewhere, 1)))
			defer c.Close(t.Context())
			must(c.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'scepkit'`))
		}, end: func(t *testing.T) {
			if err := os.Rename(filepath.Join(elsewhere, filepath.Base(socket)), socket); err != nil {
				t.Fatal(err)
			}
		}},
		{name: "read-only", begin: func(t *testing.T) {
			server.Exec(t, "postgres", `ALTER SYSTEM SET default_transaction_read_only = on`, `SELECT pg_reload_conf()`)
			time.Sleep(100 * time.Millisecond) // until the sessions have heard of it
		}, end: func(t *testing.T) {
			server.Exec(t, "postgres", `SET default_transaction_read_only = off`,
				`ALTER SYSTEM RESET default_transaction_read_only`, `SELECT pg_reload_conf()`)
		}},
		{name: "disk full, as it says", begin: func(t *testing.T) {
			server.Exec(t, database, `SET search_path = scep;
				CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = 'disk_full'; END $$;
				CREATE TRIGGER t BEFORE INSERT OR UPDATE ON record EXECUTE FUNCTION full_disk()`)
		}, end: func(t *testing.T) { server.Exec(t, database, `DROP TRIGGER t ON scep.record`) }},
	}...)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestLostConnections loses the connection to PostgreSQL at every request that an enrolment makes
// of it, at every moment: before it arrived, after it was carried out, and in the answer that it
// has been committed.
func TestLostConnections(t *testing.T) {
	c := newCheap(t)
	p := newPace(t)
	for _, cut := range postgrestest.Cuts {
		if cut == postgrestest.Hang && testing.Short() {
			continue // of most of them, all the time that a depot has is waited
		}
		t.Run(cut.String(), func(t *testing.T) {
			t.Parallel()
			config := newSchema(t)
			proxy := postgrestest.Shared(t).Proxy(t)
			f := newFleet(t, openPostgres(t, config), nil)
			config.URL, config.MaxConns = proxy.URL(config.URL), 1
			unanswered := 0
			for skip := 0; ; skip++ {
				db := must(postgres.Open(t.Context(), config)) // whose first statements are not prepared yet
				h := c.handler(t, db)
				f.post = func(msg []byte) (*http.Response, error) {
					begun := time.Now()
					resp := respond(h, msg)
					p.took(t, time.Since(begun))
					return resp, nil
				}
				e := f.must(fmt.Sprint("request ", skip))
				proxy.Arm(cut, skip)
				if _, err := f.ask(e, e.pkcsReq(t, f.to)); errors.Is(err, errRefused) {
					t.Error(err)
				} else if err != nil {
					unanswered++
				}
				lost := proxy.Disarm()
				f.enrol(e)
				db.Close()
				if !lost {
					if skip < 4 {
						t.Errorf("an enrolment makes %d requests, want 4 at least", skip)
					}
					t.Logf("lost at %d requests, of which %d were answered with 503; the slowest answer took %v", skip, unanswered,
						time.Duration(p.slowest.Load()).Round(time.Millisecond))
					break
				}
			}
			f.finish()
		})
	}
}
