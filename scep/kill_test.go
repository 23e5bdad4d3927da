//go:build unix

package scep_test

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/depot/postgres/postgrestest"
	"github.com/scepkit/scepkit/depot/sqlite"
)

const (
	// cyclesVariable says how often TestKillAtRandom kills each kind of process.
	cyclesVariable = "SCEPTEST_CYCLES"

	// seedVariable repeats the moments of an earlier run.
	seedVariable = "SCEPTEST_SEED"

	// serveVariable tells a process that it is a server: "sqlite PATH" or "postgres URL".
	serveVariable = "SCEPTEST_SERVE"
)

// TestKillAtRandom kills servers, which are processes of their own, and PostgreSQL itself, again
// and again at random moments, while eight clients enrol. What they were given is in the depot,
// each has one certificate, and nothing is left undone.
func TestKillAtRandom(t *testing.T) {
	if at := os.Getenv(serveVariable); at != "" {
		serveUntilKilled(t, at)
		return
	}
	t.Run("SQLite", func(t *testing.T) {
		t.Parallel()
		path := filepath.Join(t.TempDir(), "scep.db")
		s := openSQLite(t, path)
		k := newKiller(t, s, 1, "sqlite "+path)
		k.run(func(cycle int) {
			k.servers[0].kill()
			k.servers[0].start(t)
		})
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		t.Parallel()
		url := postgrestest.Start(t).Database(t)
		k := newKiller(t, openReplica(t, postgres.Config{URL: url, Timeout: time.Minute}), 2, "postgres "+url)
		k.run(func(cycle int) {
			s := k.servers[cycle%len(k.servers)]
			s.kill()
			s.start(t)
		})
	})
	t.Run("database", func(t *testing.T) {
		t.Parallel()
		db := postgrestest.Start(t) // what a process wrote, its end does not undo: that is for loss of power
		url := db.Database(t)
		k := newKiller(t, openReplica(t, postgres.Config{URL: url}), 2, "postgres "+url)
		k.run(func(int) {
			db.Kill(t)
			db.Start(t)
		})
	})
}

// A killer kills while clients enrol.
type killer struct {
	*fleet
	servers []*server
	random  *rand.Rand
	sent    atomic.Int64 // requests
}

func newKiller(t *testing.T, s store, servers int, at string) *killer {
	t.Helper()
	seed := number(t, seedVariable, int(rand.Uint32())+1, int(rand.Uint32())+1)
	t.Logf("%s=%d", seedVariable, seed)
	k := &killer{random: rand.New(rand.NewPCG(uint64(seed), 0))}
	for range servers {
		one := &server{at: at}
		t.Cleanup(one.kill)
		one.start(t)
		k.servers = append(k.servers, one)
	}
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}, Timeout: 20 * time.Second}
	t.Cleanup(client.CloseIdleConnections)
	k.fleet = newFleet(t, s, func(msg []byte) (*http.Response, error) {
		k.sent.Add(1)
		return client.Post(k.servers[rand.N(len(k.servers))].url(), "application/x-pki-message", bytes.NewReader(msg))
	})
	return k
}

// run has clients enrol and kills again and again, each time when a request has been sent and a
// while has passed.
func (k *killer) run(kill func(cycle int)) {
	k.t.Helper()
	cycles := number(k.t, cyclesVariable, 200, 10)
	k.start("kill", 6, 2)
	begun := time.Now()
	for cycle := range cycles {
		until := &k.sent
		if cycle%4 == 0 {
			until = &k.issued // so that there is something to lose, however slow the machine
		}
		for before := until.Load(); until.Load() == before && !k.t.Failed(); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(k.random.Int64N(int64(80 * time.Millisecond))))
		kill(cycle)
		if k.t.Failed() {
			k.t.Errorf("failed in cycle %d", cycle)
			break
		}
		if every := max(cycles/10, 50); (cycle+1)%every == 0 {
			k.t.Logf("%d cycles in %v, %d certificates, %d requests without an answer", cycle+1,
				time.Since(begun).Round(time.Second), k.issued.Load(), k.lost.Load())
		}
	}
	k.finish()
	if k.lost.Load() < int64(cycles)/4 || k.issued.Load() < int64(cycles)/4 {
		k.t.Errorf("%d certificates were delivered and %d requests lost in %d cycles; the test needs more of both", k.issued.Load(), k.lost.Load(), cycles)
	}
}

// A server is a process that can be killed and started again.
type server struct {
	at      string // what is served
	address atomic.Pointer[string]
	cmd     *exec.Cmd
	stdin   io.Closer // it ends with its parent
}

func (s *server) url() string { return "http://" + *s.address.Load() + "/?operation=PKIOperation" }

func (s *server) start(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(os.Args[0], "-test.run=^TestKillAtRandom$")
	s.cmd.Env = append(os.Environ(), serveVariable+"="+s.at)
	s.cmd.Stderr = os.Stderr
	stdin, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.stdin = stdin
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "127.0.0.1:") {
		t.Fatalf("the server did not start: %q, %v", line, err)
	}
	address := strings.TrimSpace(line)
	s.address.Store(&address)
}

// kill kills the process, as kill -9 does, and waits for its end. A second time it does nothing.
func (s *server) kill() {
	if s.cmd == nil || s.cmd.ProcessState != nil || s.cmd.Process == nil {
		return
	}
	s.cmd.Process.Kill()
	s.stdin.Close()
	s.cmd.Wait()
}

// serveUntilKilled is the server's process.
func serveUntilKilled(t *testing.T, at string) {
	kind, where, _ := strings.Cut(at, " ")
	s := whenThere(func() (store, error) {
		if kind == "sqlite" {
			return sqlite.Open(where)
		}
		return postgres.Open(context.Background(), postgres.Config{URL: where})
	})
	h := newCheap(t).handler(t, s)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println(l.Addr())
	go http.Serve(l, h)
	io.Copy(io.Discard, os.Stdin)
}

// whenThere opens a depot as soon as that can be done, as those do who restart servers.
func whenThere(open func() (store, error)) store {
	for {
		s, err := open()
		if err == nil {
			return s
		}
		fmt.Fprintln(os.Stderr, "the server waits for its depot:", err)
		time.Sleep(100 * time.Millisecond)
	}
}
