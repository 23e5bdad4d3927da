package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	crand "crypto/rand"

	"github.com/scepkit/scepkit/backend"
	"github.com/scepkit/scepkit/backend/file"
	"github.com/scepkit/scepkit/depot/postgres"
	"github.com/scepkit/scepkit/examples/internal/newfile"
	"github.com/scepkit/scepkit/scep"
)

// A cluster is all that runs.
type cluster struct {
	o   options
	dir string

	server   *server // nil with -database
	url      string  // of the database
	replicas []*child
	proxy    *proxy
	front    *http.Server
	addr     net.Addr
	db       *postgres.DB // this process's own, to make challenges and to read at the end
	logs     []io.Closer
	paused   sync.Map // children that were killed and are not yet to be started again

	// Where nothing is killed, for what a certificate costs.
	before, after usage  // of the database
	probe         *child // sees what an RSA operation costs meanwhile
}

// prepare makes the keys of the CA and its RA in the folder, and a challenge for outsiders, unless
// they are there.
func prepare(ctx context.Context, dir string, kind backend.KeyType) (ca *scep.Identity, secret string, err error) {
	chain, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca.key")
	if _, err = os.Stat(chain); errors.Is(err, fs.ErrNotExist) {
		ca, err = file.CreateCA(chain, key, file.CAOptions{KeyType: kind})
	} else {
		ca, err = file.Open(chain, key)
	}
	if err != nil {
		return nil, "", err
	}
	if _, _, err = file.RA(ctx, ca, dir, file.RAOptions{}); err != nil {
		return nil, "", err
	}
	name := filepath.Join(dir, "challenge")
	err = newfile.Write(name, []byte(crand.Text()+"\n"), 0o600)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, "", err
	}
	text, err := os.ReadFile(name)
	return ca, strings.TrimSpace(string(text)), err
}

// start starts everything, and returns when a device can enrol. The caller calls stop in any case.
func (c *cluster) start(ctx context.Context) (err error) {
	listener, err := net.Listen("tcp", c.o.addr) // first of all: it costs nothing
	if err != nil {
		return fmt.Errorf("%w; give another -addr, or -addr 127.0.0.1:0", err)
	}
	defer func() {
		if c.front == nil {
			listener.Close()
		}
	}()
	if c.url = c.o.database; c.url == "" {
		log, err := c.log("postgres")
		if err != nil {
			return err
		}
		if c.server, err = newServer(ctx, filepath.Join(c.dir, "postgres"), c.o.replicas*connections+c.connections()+spare, log); err != nil {
			return fmt.Errorf("%w%s", err, c.tail("postgres"))
		}
		c.url = c.server.url()
		if err := c.server.child.start(); err != nil {
			return err
		}
	}
	if c.db, err = c.open(ctx); err != nil {
		return err
	}
	c.proxy = newProxy(c.o.replicas)
	for i := range c.o.replicas {
		log, err := c.log(fmt.Sprint("replica-", i+1))
		if err != nil {
			return err
		}
		r := &child{
			name: fmt.Sprintf("replica %d", i+1), log: log, kill: killProcess, env: []string{urlVariable + "=" + c.url},
			args: []string{"replica", "-number", fmt.Sprint(i + 1), "-data", c.dir, "-busy", fmt.Sprint(c.o.busy)},
			said: func(addr string) { c.proxy.set(i, addr) },
		}
		if err := r.start(); err != nil {
			return err
		}
		c.replicas = append(c.replicas, r)
	}
	c.addr = listener.Addr()
	c.front = &http.Server{Handler: c.proxy, ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	go c.front.Serve(listener)
	return c.ready(ctx)
}

// log returns where the log of a child goes.
func (c *cluster) log(name string) (io.Writer, error) {
	if c.o.verbose {
		return os.Stderr, nil
	}
	f, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	c.logs = append(c.logs, f)
	return f, nil
}

// tail returns the end of a log, for an error.
func (c *cluster) tail(name string) string {
	text, _ := os.ReadFile(filepath.Join(c.dir, name+".log"))
	if len(text) == 0 {
		return ""
	}
	return "; the end of its log:\n" + string(text[max(0, len(text)-1000):])
}

// connections is how many this process has to the database.
func (c *cluster) connections() int { return max(4, c.o.clients/2) }

// spare is how many connections there are for people, and while what was killed is not yet missed.
const spare = 50

// open opens the database for this process, as soon as it is there.
func (c *cluster) open(ctx context.Context) (*postgres.DB, error) {
	config := postgres.Config{URL: c.url, Schema: schema, MaxConns: c.connections(), Timeout: 5 * time.Second}
	if c.server == nil {
		return postgres.Open(ctx, config) // it is there, or something is wrong
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		db, err := postgres.Open(ctx, config)
		if err == nil {
			return db, nil
		}
		if runs, ended := c.server.child.state(); !runs {
			return nil, fmt.Errorf("PostgreSQL does not start: %v%s", ended, c.tail("postgres"))
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), err)
		}
	}
}

// ready waits until every replica serves.
func (c *cluster) ready(ctx context.Context) error {
	for {
		missing := 0
		for i, addr := range c.proxy.there() {
			if addr == "" {
				missing++
			}
			if runs, ended := c.replicas[i].state(); !runs {
				return fmt.Errorf("%s does not start: %v%s", c.replicas[i].name, ended, c.tail(fmt.Sprint("replica-", i+1)))
			}
		}
		if missing == 0 {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// longestPause is how long at most something that was killed stays away.
const longestPause = 1500 * time.Millisecond

// chaos kills replicas and the database in a random order, one each time, and starts each again
// after a while, until ctx ends. When it returns, all have been started again.
func (c *cluster) chaos(ctx context.Context) {
	if c.o.killEvery == 0 {
		return
	}
	victims := c.children()
	tick := time.NewTicker(c.o.killEvery)
	defer tick.Stop()
	var away sync.WaitGroup
	defer away.Wait()
	for n := 0; ; {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if n%len(victims) == 0 {
			rand.Shuffle(len(victims), func(i, j int) { victims[i], victims[j] = victims[j], victims[i] })
		}
		v := victims[n%len(victims)]
		if _, away := c.paused.LoadOrStore(v, true); away {
			continue
		}
		n++
		away.Go(func() {
			defer c.paused.Delete(v)
			v.slay()
			select {
			case <-time.After(rand.N(longestPause)):
			case <-ctx.Done():
			}
			c.restart(v)
		})
	}
}

// keepUp starts again what has ended by itself, which the report tells, until ctx ends.
func (c *cluster) keepUp(ctx context.Context) {
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		for _, v := range c.children() {
			if _, away := c.paused.Load(v); !away {
				c.restart(v)
			}
		}
	}
}

// children are all that can be killed.
func (c *cluster) children() []*child {
	all := slices.Clone(c.replicas)
	if c.server != nil {
		all = append(all, c.server.child)
	}
	return all
}

func (c *cluster) restart(v *child) {
	if err := v.start(); err != nil {
		fmt.Fprintf(os.Stderr, "cluster: starting %s again: %v\n", v.name, err)
	}
}

// finish reads what is in the depot, stops everything, and reports.
func (c *cluster) finish(f *fleet) (*report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	lost, err := f.ledger.audit(ctx, c.db)
	if err != nil {
		return nil, fmt.Errorf("reading the depot: %w", err)
	}
	if err := c.stop(); err != nil {
		return nil, err
	}
	return newReport(c, f, lost), nil
}

// stop stops everything in order. Stopping again does nothing.
func (c *cluster) stop() error {
	var errs []error
	if c.front != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if c.front.Shutdown(ctx) != nil {
			c.front.Close() // who is still there has had his time
		}
	}
	var all sync.WaitGroup
	results := make([]error, len(c.replicas))
	for i, r := range c.replicas {
		all.Go(func() { results[i] = r.stop() })
	}
	all.Wait()
	errs = append(errs, results...)
	if c.db != nil {
		errs = append(errs, c.db.Close())
	}
	if c.probe != nil {
		errs = append(errs, c.probe.stop())
	}
	if c.server != nil && c.server.child != nil {
		errs = append(errs, c.server.child.stop())
	}
	for _, l := range c.logs {
		l.Close()
	}
	c.logs = nil
	return errors.Join(errs...)
}

// measure reads what the database has used, for a report on costs.
func (c *cluster) measure(ctx context.Context) (u usage, err error) {
	if c.o.killEvery == 0 && c.server != nil {
		err = u.read(ctx, c.url)
	}
	return u, err
}

// service is the URL for devices.
func (c *cluster) service() string {
	host := c.addr.String()
	if tcp, ok := c.addr.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		host = fmt.Sprintf("127.0.0.1:%d", tcp.Port)
	}
	return "http://" + host + "/scep"
}

// greet says what runs, and how others can enrol.
func greet(out io.Writer, c *cluster, ca *scep.Identity, secret string) {
	line := func(name, value string) { fmt.Fprintf(out, "  %-11s  %s\n", name, value) }
	fmt.Fprintf(out, "Ready: %d replicas over one PostgreSQL.\n\n", c.o.replicas)
	line("URL", c.service())
	line("fingerprint", fmt.Sprintf("%x", sha256.Sum256(ca.Certificate().Raw)))
	line("challenge", secret)
	line("state", strings.TrimSuffix(c.service(), "/scep")+"/readyz")
	if c.server == nil {
		line("tables", "schema "+schema+", which stays there")
	}
	line("data", c.dir)
	fmt.Fprintf(out, `
Devices of your own can join in; the challenge above is for them, as often as they like:

  go run ./examples/enroll enroll -url %s \
    -fingerprint %x \
    -challenge %s -cn device-1 -out device-1

`, c.service(), sha256.Sum256(ca.Certificate().Raw), secret)
}
