package main

import (
	"fmt"
	"strings"

	"casty"
)

// These keys are all that nodes and clients must agree on to find each other,
// and the types in them all that they must agree on to talk.
var (
	SensorKey  = casty.NewServiceKey[casty.StreamProducerMsg[SensorReading]]("sensor")
	MonitorKey = casty.NewServiceKey[MonitorMsg]("monitor")
)

type (
	// SensorRef is where a stream of readings begins.
	SensorRef = casty.ActorRef[casty.StreamProducerMsg[SensorReading]]
	// AlertsRef is where a stream of alerts begins.
	AlertsRef = casty.ActorRef[casty.StreamProducerMsg[Alert]]
)

// sensorPrefix and the kind of a sensor are the name of its actor.
const sensorPrefix = "sensor-"

// A SensorReading is an element of the streams from the nodes to the client.
type SensorReading struct {
	Sensor string
	Seq    int // from 1
	Value  float64
	Unit   string
}

// An Alert is an element of the stream from the client to the monitor.
type Alert struct {
	Reading SensorReading
	Limit   float64
}

// MonitorMsg tells the monitor of a client's alerts. A ref is data like any
// other: the monitor subscribes to it, although nobody can dial the client.
type MonitorMsg struct{ Alerts AlertsRef }

// A Sensor is a kind of sensor: what it measures, and what is an anomaly.
type Sensor struct {
	Name, Unit string
	Low, High  float64 // all values are between these, inclusive
	Limit      float64 // a value above it is an anomaly
}

func (s Sensor) String() string { return s.Name }

// Sensors returns every kind there is.
func Sensors() []Sensor {
	return []Sensor{
		{"temp", "°C", 18, 35, 30},
		{"humidity", "%", 30, 80, 70},
		{"pressure", "hPa", 990, 1030, 1020},
	}
}

// SensorNamed finds a kind; its error says which there are.
func SensorNamed(name string) (Sensor, error) {
	var known []string
	for _, sensor := range Sensors() {
		if sensor.Name == name {
			return sensor, nil
		}
		known = append(known, sensor.Name)
	}
	return Sensor{}, fmt.Errorf("want one of %s", strings.Join(known, ", "))
}

// Alert returns what is to be said of a reading, if anything is.
func (r SensorReading) Alert() (alert Alert, anomaly bool) {
	sensor, err := SensorNamed(r.Sensor)
	return Alert{r, sensor.Limit}, err == nil && r.Value > sensor.Limit
}

// String is a reading in columns, with an anomaly marked.
func (r SensorReading) String() string {
	mark := ' '
	if _, anomaly := r.Alert(); anomaly {
		mark = '!'
	}
	return fmt.Sprintf("%-8s %4d %c %7.2f %s", r.Sensor, r.Seq, mark, r.Value, r.Unit)
}

func (a Alert) String() string {
	return fmt.Sprintf("%v is above %v", a.Reading, a.Limit)
}
