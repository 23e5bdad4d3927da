// Cluster runs several replicas of a SCEP server over one PostgreSQL, with devices that enrol,
// renew and poll, while replicas and database are killed at random and started again. At the end
// it reads the depot and says what was lost: nothing.
//
//	go run ./examples/cluster
//	go run ./examples/cluster -replicas 5 -clients 32 -for 10m -kill-every 500ms
//	go run ./examples/cluster -kill-every 0              what a certificate costs
//	go run ./examples/cluster capacity -devices 1000000  what many devices need; see CAPACITY.md
//
// A replica is what a server of your own could be: see replica.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/scepkit/scepkit/backend"
)

type options struct {
	addr, data, database, caKey string
	replicas, clients, busy     int
	duration, killEvery         time.Duration
	verbose                     bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second ^C ends the program at once
	status, err := command(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
	}
	os.Exit(status)
}

// command does what the arguments say, and returns the exit status.
func command(ctx context.Context, args []string) (status int, err error) {
	if len(args) > 0 {
		switch args[0] {
		case "capacity":
			return exit(capacityCommand(os.Stdout, args[1:]))
		case "replica", "keeper", "probe", "broom": // what this program runs of itself
			return exit(childCommand(args[0], args[1:]))
		}
	}
	var o options
	set := flag.NewFlagSet("cluster", flag.ContinueOnError)
	set.IntVar(&o.replicas, "replicas", 3, "`number` of servers")
	set.IntVar(&o.clients, "clients", 8, "`number` of devices at work at once; 0: only those that others bring")
	set.DurationVar(&o.duration, "for", 30*time.Second, "`time` after which to stop; 0: when interrupted")
	set.DurationVar(&o.killEvery, "kill-every", 2*time.Second, "`time` between kills; 0: nothing is killed, and the report says what a certificate costs")
	set.IntVar(&o.busy, "busy", 10, "`percent` of the signatures that the CA's key does not give at once, so that devices have to poll")
	set.StringVar(&o.addr, "addr", "127.0.0.1:8080", "listen on this `address`; port 0: any that is free")
	set.StringVar(&o.data, "data", "", "keep everything in this `folder`, and use it again; default: a temporary one")
	set.StringVar(&o.database, "database", "", "use the PostgreSQL at this `URL`, which is then not killed, in place of one of the program's own")
	set.StringVar(&o.caKey, "ca-key", "p256", "`kind` of key for a CA that is made: rsa2048, rsa3072, rsa4096, p256, p384 or ed25519")
	set.BoolVar(&o.verbose, "v", false, "show what the servers log")
	set.Usage = func() {
		fmt.Fprint(set.Output(), "usage: cluster [flags]\n       cluster capacity [flags]  what many devices need; capacity -h has its flags\n\n")
		set.PrintDefaults()
	}
	if err := set.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0, nil
	} else if err != nil {
		return 2, nil // it has been said
	}
	if text := o.wrong(set.Args()); text != "" {
		fmt.Fprintf(os.Stderr, "cluster: %s; cluster -h has the flags\n", text)
		return 2, nil
	}
	r, err := run(ctx, o)
	if err != nil {
		return 1, err
	}
	r.print(os.Stdout)
	return r.status(), nil
}

// wrong says which of the options cannot be, or nothing.
func (o options) wrong(arguments []string) string {
	switch {
	case len(arguments) > 0:
		return fmt.Sprintf("there is no command %q; the only one is capacity", arguments[0])
	case o.replicas < 1:
		return "-replicas is 1 or more"
	case o.clients < 0:
		return "-clients is 0 or more"
	case o.duration < 0 || o.killEvery < 0:
		return "-for and -kill-every are 0 or more"
	case o.busy < 0 || o.busy > 90:
		return "-busy is from 0 to 90"
	}
	return ""
}

func exit(err error) (int, error) {
	if errors.Is(err, flag.ErrHelp) {
		return 0, nil
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// run is the whole life of a cluster. When it returns, nothing that it started runs any more.
func run(ctx context.Context, o options) (_ *report, err error) {
	kind, err := backend.ParseKeyType(o.caKey)
	if err != nil {
		return nil, fmt.Errorf("-ca-key: %w", err)
	}
	dir, leave, err := folder(o.data)
	if err != nil {
		return nil, err
	}
	c := &cluster{o: o, dir: dir}
	var r *report
	defer func() {
		keep := o.data == "" && len(c.replicas) > 0 && (err != nil && ctx.Err() == nil || r != nil && r.status() != 0)
		if keep {
			fmt.Fprintf(os.Stderr, "cluster: database and logs are left in %s\n", dir)
		}
		err = errors.Join(err, leave(keep))
	}()
	keys, secret, err := prepare(ctx, dir, kind)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if err := c.start(ctx); err != nil || ctx.Err() != nil {
		return nil, early(ctx, err)
	}
	greet(os.Stdout, c, keys, secret)
	f, err := newFleet(ctx, c, keys)
	if err != nil {
		return nil, early(ctx, err)
	}
	if err := c.work(ctx, f, os.Stdout); err != nil {
		return nil, err
	}
	r, err = c.finish(f)
	return r, err
}

// early is for what goes wrong before devices are at work: if that is ^C, it says so.
func early(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted before everything was started")
	}
	return err
}

// folder returns the folder to keep things in, and what is to be called at the end: that deletes a
// temporary one, unless it is to be kept. The database may run as another user, who has to come
// through.
func folder(name string) (dir string, leave func(keep bool) error, err error) {
	if name != "" {
		if dir, err = filepath.Abs(name); err != nil {
			return "", nil, err
		}
		return dir, func(bool) error { return nil }, os.MkdirAll(dir, 0o711)
	}
	if dir, err = os.MkdirTemp("", "cluster"); err != nil {
		return "", nil, err
	}
	broom := newBroom(dir)
	if err := errors.Join(os.Chmod(dir, 0o711), broom.start()); err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func(keep bool) error {
		broom.slay()
		if keep {
			return nil
		}
		return os.RemoveAll(dir)
	}, nil
}

// work has the fleet at it until it is time, and things killed meanwhile. When it returns, all
// that was killed has been started again, and each device has what it asked for, or has given up.
func (c *cluster) work(ctx context.Context, f *fleet, out io.Writer) error {
	enough := ctx
	if c.o.duration > 0 {
		var cancel context.CancelFunc
		enough, cancel = context.WithTimeout(ctx, c.o.duration)
		defer cancel()
	}
	before, err := c.measure(ctx)
	if err != nil {
		return early(ctx, err)
	}
	if c.o.killEvery == 0 {
		c.probe = &child{name: "probe", args: []string{"probe", c.dir}, log: os.Stderr}
		if err := c.probe.start(); err != nil {
			return err
		}
	}
	c.before, f.begun = before, time.Now()

	// Devices are not cut short by ^C, only by the time that they have to finish.
	finishing, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	working := make(chan struct{})
	go func() { defer close(working); f.run(enough, finishing) }()
	done := (<-chan struct{})(working)
	up := make(chan struct{})
	go func() { defer close(up); c.keepUp(finishing) }()
	defer func() { giveUp(); <-up }()
	killed := make(chan struct{})
	go func() { defer close(killed); c.chaos(enough) }()

	every := time.Second
	if c.o.duration == 0 || c.o.duration > 10*time.Minute {
		every = 10 * time.Second
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for over := enough.Done(); over != nil || done != nil; {
		select {
		case <-tick.C:
			fmt.Fprintln(out, f.progress(c))
		case <-over:
			over = nil
			f.took, f.inTime = time.Since(f.begun), f.enrolled.Load()+f.renewed.Load()
			<-killed
			fmt.Fprintln(out, "\nNothing is killed any more. Devices get what they have asked for.")
			time.AfterFunc(patience, giveUp)
		case <-done:
			done = nil
		}
	}
	c.after, err = c.measure(context.WithoutCancel(ctx))
	return err
}

// patience is how long devices may take to finish, with everything running.
const patience = time.Minute
